import functools
import math

import pytest
import torch

from rlcm_cli.core.gaussian import gaussian_kl, gaussian_log_prob, gaussian_log_ratio
from rlcm_cli.core.objectives import (
    dppo,
    grpo_guard,
    neighbour_pairs,
    ppo_clip,
    rebel_loss,
    rebel_weights,
    reinforce,
    rwr_sparse_weights,
    rwr_weights,
)

CLIP = 0.2


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        # The gradient of −A · r by the log-probability is −A · r; where the clip acts it is 0.
        (2.0, 1.1, -2.2, -2.2),
        (2.0, 1.5, -2.4, 0.0),
        (2.0, 0.5, -1.0, -1.0),
        (-1.0, 0.9, 0.9, 0.9),
        (-1.0, 0.5, 0.8, 0.0),
        (-1.0, 1.5, 1.5, 1.5),
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_loss_and_gradient_by_hand(advantage, ratio, loss, gradient):
    log_prob = torch.tensor([-1.0 + math.log(ratio)], requires_grad=True)
    result = ppo_clip(log_prob, torch.tensor([-1.0]), torch.tensor([advantage]), CLIP)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-6)
    assert log_prob.grad.item() == pytest.approx(gradient, rel=1e-6)


def test_before_the_first_update_it_is_the_plain_policy_gradient():
    log_probs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.5, 2.0])
    result = ppo_clip(log_probs, log_probs.detach().clone(), advantages, 1e-4)
    result.loss.backward()
    torch.testing.assert_close(log_probs.grad, -advantages / 3)
    assert result.metrics["ratio_drift"].item() == 0
    assert result.metrics["clip_fraction"].item() == 0


def metrics_of(log_probs, old_log_probs):
    """Metrics of each objective; for REBEL of trajectories of one action."""
    ones = torch.ones(len(log_probs))
    pairs = neighbour_pairs(torch.arange(len(log_probs)) // 2)
    return {
        "ppo": ppo_clip(log_probs, old_log_probs, ones, CLIP).metrics,
        "reinforce": reinforce(log_probs, old_log_probs, ones).metrics,
        "rebel": rebel_loss(log_probs - old_log_probs, ones, pairs, 1.0).metrics,
    }


def test_the_metrics_of_a_batch_by_hand():
    ratios = torch.tensor([1.0, 1.1, 0.5, 1.5])
    records = metrics_of(ratios.log() - 2, torch.full((4,), -2.0))
    for metrics in records.values():
        assert metrics["ratio"].item() == pytest.approx(1.025)
        assert metrics["ratio_drift"].item() == pytest.approx(0.5)
        assert metrics["approx_kl"].item() == pytest.approx(0.5 * (ratios.log() ** 2).mean().item())
    assert records["ppo"]["clip_fraction"].item() == 0.5
    result = ppo_clip(ratios.log(), torch.zeros(4), torch.ones(4), CLIP)
    assert result.loss.item() == pytest.approx(-(1.0 + 1.1 + 0.5 + 1.2) / 4)


def test_metrics_are_scalars_that_carry_no_gradient():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    for metrics in metrics_of(log_probs, torch.tensor([-1.1, -2.0])).values():
        assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_a_nan_shows_in_the_drift():
    for metrics in metrics_of(torch.tensor([0.0, math.nan]), torch.zeros(2)).values():
        assert math.isnan(metrics["ratio_drift"])


def test_reinforce_by_hand():
    log_probs = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    weights = torch.tensor([0.5, -1.5, 2.0])
    result = reinforce(log_probs, torch.tensor([-1.0, -2.5, -4.0]), weights)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-(-0.5 + 3.0 - 8.0) / 3)
    torch.testing.assert_close(log_probs.grad, -weights / 3)


class TestNeighbourPairs:
    @pytest.mark.parametrize(
        ("groups", "pairs"),
        [
            ([0, 0, 1, 1], [[0, 1], [2, 3]]),
            ([5, 5, 5, 5, 2, 2], [[4, 5], [0, 1], [2, 3]]),
            ([1, 0, 1, 0, 0, 0], [[1, 3], [4, 5], [0, 2]]),
            ([0, 0, 0, 1, 1], [[0, 1], [3, 4]]),
            ([0, 1, 2], []),
        ],
    )
    def test_by_hand(self, groups, pairs):
        assert neighbour_pairs(torch.tensor(groups)).tolist() == pairs

    def test_each_sample_of_even_groups_has_one_partner_of_its_group(self):
        groups = torch.arange(12).repeat(4)[torch.randperm(48, generator=torch.Generator().manual_seed(0))]
        pairs = neighbour_pairs(groups)
        assert pairs.dtype == torch.int64
        assert sorted(pairs.flatten().tolist()) == list(range(48))
        assert torch.equal(groups[pairs[:, 0]], groups[pairs[:, 1]])


class TestRebel:
    LOG_RATIOS = (0.3, -0.2, 0.05, 0.4, -0.6, 0.1)
    ADVANTAGES = (1.0, 0.5, -2.0, 0.0, 0.25, 3.0)
    PAIRS = ((0, 1), (2, 3), (5, 4))

    @pytest.mark.parametrize("rebel_lr", [1.0, 0.25])
    def test_loss_and_weights_by_hand(self, rebel_lr):
        residuals = [
            rebel_lr * (self.LOG_RATIOS[y] - self.LOG_RATIOS[other]) - (self.ADVANTAGES[y] - self.ADVANTAGES[other])
            for y, other in self.PAIRS
        ]
        weights = [0.0] * 6
        for (y, other), residual in zip(self.PAIRS, residuals, strict=True):
            weights[y], weights[other] = 2 / 3 * rebel_lr * residual, -2 / 3 * rebel_lr * residual
        arguments = (
            torch.tensor(self.LOG_RATIOS, dtype=torch.float64),
            torch.tensor(self.ADVANTAGES, dtype=torch.float64),
            torch.tensor(self.PAIRS),
            rebel_lr,
        )
        assert rebel_loss(*arguments).loss.item() == pytest.approx(sum(r**2 for r in residuals) / 3, rel=1e-12)
        with torch.no_grad():
            assert rebel_weights(*arguments).tolist() == pytest.approx(weights, rel=1e-12)

    @pytest.mark.parametrize("group_size", [2, 4])
    def test_two_passes_give_the_gradient_of_the_loss(self, group_size):
        """As a trainer takes it: the second pass in micro-batches that cut through samples, each by its share."""
        samples, actions = 8, 3
        generator = torch.Generator().manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        states = torch.randn(samples, actions, 4, generator=generator, dtype=torch.float64)
        old_log_probs = 0.1 * torch.randn(samples, actions, generator=generator, dtype=torch.float64)
        advantages = torch.randn(samples, generator=generator, dtype=torch.float64)
        pairs = neighbour_pairs(torch.arange(samples) // group_size)
        rest = (advantages, pairs, 0.7)

        log_ratios = (network(states).squeeze(2) - old_log_probs).sum(1)
        expected = torch.autograd.grad(rebel_loss(log_ratios, *rest).loss, list(network.parameters()))

        with torch.no_grad():
            weights = rebel_weights((network(states).squeeze(2) - old_log_probs).sum(1), *rest)
        total, weights_N = samples * actions, -samples * actions * weights.repeat_interleave(actions)
        for rows in torch.randperm(total, generator=generator).split(5):
            log_probs = network(states.flatten(0, 1)[rows]).squeeze(1)
            result = reinforce(log_probs, old_log_probs.flatten()[rows], weights_N[rows])
            (len(rows) / total * result.loss).backward()
        assert max(gradient.abs().max() for gradient in expected) > 0.1
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)

    def test_the_samples_of_other_pairs_do_not_matter(self):
        log_ratios, advantages = torch.tensor(self.LOG_RATIOS), torch.tensor(self.ADVANTAGES)
        pairs = torch.tensor([[0, 1]])
        of_others = torch.cat([torch.zeros(2), torch.ones(4)])
        assert torch.equal(
            rebel_loss(log_ratios, advantages, pairs, 1.0).loss,
            rebel_loss(log_ratios + of_others, advantages + of_others, pairs, 1.0).loss,
        )


class TestRwr:
    def test_weights_by_hand(self):
        weights = rwr_weights(torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64), 0.2)
        terms = [1.0, math.exp(0.2), math.exp(-0.4)]
        assert weights.tolist() == pytest.approx([term / sum(terms) for term in terms], rel=1e-12)

    @pytest.mark.parametrize("count", [1, 7, 10_000])
    def test_weights_sum_to_1_over_a_round(self, count):
        advantages = 3 * torch.randn(count, generator=torch.Generator().manual_seed(count))
        assert rwr_weights(advantages, 0.2).sum().item() == pytest.approx(1, abs=2e-6)
        assert rwr_weights(100 * advantages, 2.0).sum().item() == pytest.approx(1, abs=2e-6)
        assert rwr_sparse_weights(advantages, 0.1).sum().item() == pytest.approx(1, abs=2e-6)

    @pytest.mark.parametrize(
        ("advantages", "share", "weights"),
        [
            ([3.0, 1.0, 4.0, 2.0], 0.5, [0.5, 0, 0.5, 0]),
            ([3.0, 1.0, 4.0, 2.0], 0.25, [0, 0, 1, 0]),
            ([3.0, 1.0, 4.0, 2.0], 0.01, [0, 0, 1, 0]),
            ([3.0, 1.0, 4.0, 2.0], 1.0, [0.25] * 4),
            ([1.0, 2.0, 2.0, 2.0], 0.5, [0, 0.5, 0.5, 0]),
        ],
    )
    def test_sparse_weights_by_hand(self, advantages, share, weights):
        assert rwr_sparse_weights(torch.tensor(advantages), share).tolist() == weights

    def test_a_tenth_of_a_round_is_a_tenth_of_its_samples(self):
        for tens in range(1, 200):
            assert rwr_sparse_weights(torch.arange(10.0 * tens), 0.1).count_nonzero() == tens

    def test_reinforce_with_these_weights_is_the_weighted_likelihood(self):
        generator = torch.Generator().manual_seed(0)
        log_probs_BA = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        weights = rwr_weights(torch.randn(6, generator=generator, dtype=torch.float64), 0.2)
        likelihood = -(weights * log_probs_BA.mean(1)).sum()
        flat = log_probs_BA.flatten()
        loss = reinforce(flat, flat, 6 * weights.repeat_interleave(3)).loss
        torch.testing.assert_close(loss, likelihood, rtol=1e-12, atol=0)


class Policy(torch.nn.Module):
    """A Gaussian policy in float64, away from the old one, at eight actions of three latents."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
        self.states, self.noise, self.advantages = draw(8, 3), draw(8, 3), draw(8)
        self.std = torch.linspace(0.2, 0.9, 8, dtype=torch.float64)
        self.gains = torch.linspace(0.1, 0.7, 8, dtype=torch.float64)
        old = draw(3, 3)
        self.old_means = self.states @ old
        self.actions = self.old_means + self.std[:, None] * self.noise
        self.weight = torch.nn.Parameter(old + 0.1 * draw(3, 3))

    def compare(self, reduction="mean"):
        """Log-ratios and KL divergences, [8] each."""
        means, std = self.states @ self.weight, self.std[:, None]
        log_ratios = gaussian_log_ratio(self.actions, means, self.old_means, std, reduction)
        return log_ratios, gaussian_kl(means, self.old_means, std, reduction)

    def gradient_of(self, loss):
        return torch.autograd.grad(loss, self.weight)[0]


def test_a_log_ratio_is_the_difference_of_log_densities():
    policy = Policy()
    for reduction in ("mean", "sum"):
        of = [
            gaussian_log_prob(policy.actions, means, policy.std[:, None], reduction)
            for means in (policy.states @ policy.weight, policy.old_means)
        ]
        torch.testing.assert_close(policy.compare(reduction)[0], of[0] - of[1], rtol=0, atol=1e-12)


def test_dppo_has_the_gradient_of_its_definition():
    policy, max_kl, terms = Policy(), 0.02, []
    for row, advantage in enumerate(policy.advantages):
        mean, old, std = policy.states[row] @ policy.weight, policy.old_means[row], policy.std[row]
        ratio = (((policy.actions[row] - old) ** 2 - (policy.actions[row] - mean) ** 2) / (2 * std**2)).mean().exp()
        far = ((mean - old) ** 2 / (2 * std**2)).mean() >= max_kl
        outward = ratio > 1 if advantage > 0 else ratio < 1
        terms.append(0 * ratio if far and outward else -advantage * ratio)
    expected = torch.stack(terms).mean()
    result = dppo(*policy.compare(), policy.advantages, max_kl)
    assert 0 < result.metrics["masked_fraction"] < (policy.compare()[1] >= max_kl).double().mean() < 1
    torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
    gradients = policy.gradient_of(result.loss), policy.gradient_of(expected)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)
    assert gradients[0].abs().max() > 1e-2


def test_guard_has_the_gradient_of_its_definition():
    policy, clip, terms = Policy(), 0.02, []
    for row, advantage in enumerate(policy.advantages):
        mean, old, std = policy.states[row] @ policy.weight, policy.old_means[row], policy.std[row]
        log_ratio = (((policy.actions[row] - old) ** 2 - (policy.actions[row] - mean) ** 2) / (2 * std**2)).mean()
        ratio = ((log_ratio + ((mean - old) ** 2 / (2 * std**2)).mean()) * std).exp()
        gain = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - clip, 1 + clip))
        terms.append(-gain / policy.gains[row])
    expected = torch.stack(terms).mean()
    result = grpo_guard(*policy.compare(), policy.std, policy.gains, policy.advantages, clip)
    assert 0 < result.metrics["clip_fraction"] < 1
    torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
    gradients = policy.gradient_of(result.loss), policy.gradient_of(expected)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)
    assert gradients[0].abs().max() > 1e-2


def test_a_ratio_that_overflows_is_masked_without_nan():
    log_ratios = torch.tensor([1e4, 0.1], requires_grad=True)
    dppo(log_ratios, torch.tensor([1e4, 0.0]), torch.tensor([1.0, 1.0]), 1e-5).loss.backward()
    torch.testing.assert_close(log_ratios.grad, torch.tensor([0.0, -math.exp(0.1) / 2]))
