"""The gradient of distribution matching: against its definition, and on Gaussians whose optimum is known."""

import torch
from torch import Tensor

from rlcm_cli.core.matching import matching_gradient


def test_it_is_the_gradient_of_the_published_loss():
    images, real, fake = torch.randn(3, 5, 2, 3, 3, dtype=torch.float64)
    images.requires_grad_()
    # DMD2: half the squared distance to where the step would lead, held fast; a mean over values and samples.
    step = (images - real - (images - fake)) / (images - real).abs().mean((1, 2, 3), keepdim=True)
    loss = 0.5 * (images - (images - step).detach()).square().mean()
    (expected,) = torch.autograd.grad(loss, images)
    found = matching_gradient(images.detach(), real, fake) / images.numel()
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()


def test_a_sample_that_is_the_teachers_own_has_a_finite_one():
    images = torch.ones(1, 4)
    assert matching_gradient(images, images, images + 0.1).isfinite().all()


def denoise(noised: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return E[x | alpha x + sigma ε] of x from N(mean, std²)."""
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return mean + gain * (noised - alpha * mean)


def test_a_gaussian_becomes_the_teachers_with_its_spread():
    """The mean of all images that fit would have none."""
    generator = torch.Generator().manual_seed(0)
    centre, spread = torch.tensor(1.5), torch.tensor(0.6)
    mean, log_std = torch.tensor(-1.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_std], lr=0.02)
    for _ in range(600):
        images = mean + log_std.exp() * torch.randn(256, 8, generator=generator)
        share = 0.02 + 0.96 * torch.rand(256, 1, generator=generator)
        alpha, sigma = (1 - share**2).sqrt(), share
        noised = alpha * images.detach() + sigma * torch.randn(256, 8, generator=generator)
        fake = denoise(noised, alpha, sigma, mean.detach(), log_std.detach().exp())
        gradient = matching_gradient(images.detach(), denoise(noised, alpha, sigma, centre, spread), fake)
        optimizer.zero_grad()
        images.backward(gradient / images.numel())
        optimizer.step()
    assert abs(mean.item() - 1.5) < 0.05
    assert abs(log_std.exp().item() - 0.6) < 0.05
