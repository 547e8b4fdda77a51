import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from rlcm_cli.core.gaussian import gaussian_kl, gaussian_log_prob, take_action

SHAPE = (3, 4, 8, 8)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def means() -> torch.Tensor:
    """Two means, [2, B, C, H, W]."""
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def std() -> torch.Tensor:
    return torch.tensor([0.1, 0.5, 0.99]).view(3, 1, 1, 1)


def independent_normal(mean: torch.Tensor, std: torch.Tensor) -> Independent:
    return Independent(Normal(mean.double(), std.double().expand(SHAPE)), 3)


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 256)])
def test_log_prob_is_the_density_of_torch(means, noise, std, reduction, divisor):
    action = means[0] + std * noise
    expected = independent_normal(means[0], std).log_prob(action.double()) / divisor
    log_prob = gaussian_log_prob(action, means[0], std, reduction)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), expected, rtol=2e-6, atol=0)
    in_double = gaussian_log_prob(action.double(), means[0].double(), std.double(), reduction)
    torch.testing.assert_close(in_double, expected, rtol=1e-12, atol=0)


def test_log_prob_of_half_precision_is_computed_in_float32(means, noise, std):
    action, mean = (means[0] + std * noise).bfloat16(), means[0].bfloat16()
    log_prob = gaussian_log_prob(action, mean, std.bfloat16(), "mean")
    assert log_prob.dtype == torch.float32
    assert torch.equal(log_prob, gaussian_log_prob(action.float(), mean.float(), std.bfloat16().float(), "mean"))


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 256)])
def test_kl_is_the_divergence_of_torch(means, std, reduction, divisor):
    mean, other = means
    expected = kl_divergence(independent_normal(mean, std), independent_normal(other, std)) / divisor
    torch.testing.assert_close(gaussian_kl(mean, other, std, reduction).double(), expected, rtol=2e-6, atol=0)


def test_kl_of_equal_policies_is_zero_and_its_gradient_pulls_the_mean_back(means, std):
    mean, other = means[0].requires_grad_(), means[1]
    assert torch.equal(gaussian_kl(mean, mean, std, "mean"), torch.zeros(3))
    (gradient,) = torch.autograd.grad(gaussian_kl(mean, other, std, "sum").sum(), mean)
    torch.testing.assert_close(gradient, ((mean - other) / std**2).detach())


def test_an_action_is_the_mean_plus_scaled_noise(means, noise, std):
    action, _ = take_action(means[0], std, noise=noise, reduction="mean")
    assert torch.equal(action, means[0] + std * noise)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_drawn_action_scores_the_same_bytes_when_given_back(means, noise, std, dtype, reduction):
    mean = means[0].to(dtype)
    action, drawn = take_action(mean, std, noise=noise, reduction=reduction)
    assert action.dtype == dtype
    again, scored = take_action(mean, std, action=action, reduction=reduction)
    assert torch.equal(again, action)
    assert drawn.dtype == torch.float32
    assert torch.equal(scored, drawn)
    # The density is that of the rounded action, not of the noise that it was drawn with.
    assert torch.equal(drawn, gaussian_log_prob(action, mean, std, reduction))
    if dtype != torch.float32:
        assert not torch.equal(drawn, gaussian_log_prob(means[0] + std * noise, means[0], std, reduction))


def test_the_score_carries_the_gradient_to_the_mean(means, noise, std):
    mean = means[0].requires_grad_()
    action = (mean + std * noise).detach()
    _, log_prob = take_action(mean, std, action=action, reduction="sum")
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(gradient, noise / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", [{}, {"noise": torch.zeros(SHAPE), "action": torch.zeros(SHAPE)}])
def test_drawing_and_scoring_are_not_mixed_up(means, std, given):
    with pytest.raises(TypeError, match="either noise"):
        take_action(means[0], std, reduction="mean", **given)
