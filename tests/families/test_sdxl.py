"""SDXL's own: the size in its conditioning, statistics of its autoencoder, its refiner."""

import torch
from model_helpers import load_tiny
from tiny_pipelines import LATENTS_MEAN, LATENTS_STD, build_sdxl

from rlcm_cli.families import Configs
from rlcm_cli.families.sdxl import FAMILY


def test_the_size_of_an_image_is_part_of_its_conditioning(tmp_path):
    model = load_tiny(build_sdxl(tmp_path / "sdxl"))
    model.set_image_size(24, 16)
    found = model.encode_prompts(["cat"])["time_ids"]
    assert found.tolist() == [[24, 16, 0, 0, 24, 16]]
    assert found.dtype == model.dtype
    assert model.decode(torch.zeros(1, *model.latent_shape)).shape == (1, 3, 24, 16)


def test_latents_are_scaled_by_the_statistics_of_the_autoencoder(tmp_path):
    model = load_tiny(build_sdxl(tmp_path / "sdxl"))
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD))
    with torch.no_grad():
        expected = model.pipeline.vae.decode(latents * std / 0.13025 + mean).sample
        found = FAMILY.autoencoder.decode(model, latents)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_refiner_draws_no_image_of_its_own():
    assert "refiner" in (FAMILY.loading.find_fault(Configs({}, {}, None)) or "")
