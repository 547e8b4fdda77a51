"""The loss of denoising, against its definition."""

import pytest
import torch

from rlcm_cli.core.denoising import add_noise, denoising_error

LATENTS, NOISE, PREDICTION = torch.randn(3, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
ALPHA_BAR = torch.tensor([0.9, 0.2])
SIGNAL, SIGMA = ALPHA_BAR.sqrt().view(2, 1, 1, 1), (1 - ALPHA_BAR).sqrt().view(2, 1, 1, 1)
TARGETS = {"epsilon": NOISE, "sample": LATENTS, "v_prediction": SIGNAL * NOISE - SIGMA * LATENTS}


def test_noised_latents_keep_their_variance():
    assert torch.equal(add_noise(LATENTS, NOISE, ALPHA_BAR), SIGNAL * LATENTS + SIGMA * NOISE)
    assert torch.equal(add_noise(LATENTS, NOISE, torch.ones(2)), LATENTS)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_error_is_the_mean_square_of_each_image(kind):
    expected = ((PREDICTION - TARGETS[kind]) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(denoising_error(PREDICTION, LATENTS, NOISE, ALPHA_BAR, kind), expected)
    assert denoising_error(TARGETS[kind].half(), LATENTS, NOISE, ALPHA_BAR, kind).dtype == torch.float32
    assert not denoising_error(TARGETS[kind], LATENTS, NOISE, ALPHA_BAR, kind).any()
