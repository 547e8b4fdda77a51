"""Latents to images and back, for each kind of autoencoder that diffusers has."""

from __future__ import annotations

import diffusers
import pytest
import torch

from rlcm_cli.errors import ModelError
from rlcm_cli.families._autoencoder import check_autoencoder, decode, encode

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build_kl(**settings):
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        **settings,
    ).eval()


def build_dc(**settings):
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(4, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        **settings,
    ).eval()


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (build_kl, {"scaling_factor": 0.5}),
        (build_kl, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        (build_dc, {"scaling_factor": 0.41407}),
    ],
)
@torch.no_grad()
def test_latents_are_scaled_and_shifted_as_diffusers_does(build, settings):
    vae = build(**settings)
    encoded = vae.encode(IMAGES)
    plain = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    scale, shift = settings["scaling_factor"], settings.get("shift_factor", 0.0)
    latents = encode(vae, IMAGES)
    torch.testing.assert_close(latents, (plain - shift) * scale, rtol=1e-6, atol=1e-6)
    expected = vae.decode(latents / scale + shift, return_dict=False)[0]
    torch.testing.assert_close(decode(vae, latents), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mean_and_deviation_are_those_of_each_channel():
    vae = build_kl(scaling_factor=0.5)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]))
    plain = vae.encode(IMAGES).latent_dist.mode()
    latents = encode(vae, IMAGES, mean, std)
    torch.testing.assert_close(latents, (plain - mean) * 0.5 / std)
    torch.testing.assert_close(decode(vae, latents, mean, std), vae.decode(plain).sample, rtol=1e-4, atol=1e-5)


def test_a_shift_that_is_no_number_is_refused():
    config = build_kl(scaling_factor=0.5, shift_factor=float("nan")).config
    with pytest.raises(ModelError, match=r"it: scaling_factor, shift_factor, .* cannot scale latents of 4 channels"):
        check_autoencoder("it", config, "unet", 4)
