"""What the families with a U-Net share: guidance, samplers, sizes, names."""

from types import SimpleNamespace

import pytest

from rlcm_cli.errors import ModelError
from rlcm_cli.families import Configs
from rlcm_cli.families import _unet as unet
from rlcm_cli.samplers import SAMPLERS

EMBEDDED = {"time_cond_proj_dim": 256}


def configs(denoiser, scheduler=None):
    stated = None if scheduler is None else {"_class_name": scheduler}
    return Configs({}, denoiser, stated)


def pipeline(**config):
    values = {"sample_size": 96, "in_channels": 4, "block_out_channels": (1, 1, 1, 1), **config}
    told = []
    network = SimpleNamespace(
        config=SimpleNamespace(**values), register_to_config=lambda **changes: told.append(changes)
    )
    return SimpleNamespace(unet=network, vae_scale_factor=8), told


def test_guidance_is_an_embedding_or_a_second_prediction():
    assert [unet.count_predictions(EMBEDDED, scale) for scale in (1.0, 8.0)] == [1, 1]
    assert [unet.count_predictions({}, scale) for scale in (1.0, 8.0)] == [1, 2]


def test_the_sampler_is_the_one_that_the_model_is_made_for():
    lcm, tcd, ddim = (SAMPLERS[kind] for kind in ("lcm", "tcd", "ddim"))
    assert unet.choose_sampler("mine", configs(EMBEDDED), None, None) is lcm
    assert unet.choose_sampler("mine", configs({}, "TCDScheduler"), None, None) is tcd
    assert unet.choose_sampler("mine", configs({}, "PNDMScheduler"), None, None) is ddim
    assert unet.choose_sampler("mine", configs({}, "PNDMScheduler"), None, "lora") is lcm
    assert unet.choose_sampler("mine", configs({}), tcd, "lora") is tcd
    with pytest.raises(ModelError, match="cannot be drawn with the sampler 'ddim'"):
        unet.choose_sampler("mine", configs(EMBEDDED), ddim, None)
    with pytest.raises(ModelError, match="is a latent consistency model already"):
        unet.choose_sampler("mine", configs(EMBEDDED), None, "lora")


def test_sizes_are_of_pixels_and_latents():
    found, told = pipeline()
    assert unet.own_size(found) == (768, 768)
    assert unet.latent_shape(found, 1024, 768) == (4, 128, 96)
    unet.set_size(found, 512, 512)
    unet.set_size(found, 1024, 768)
    assert told == [{"sample_size": 64}]
    for height, width, asked in ((500, 500, "500"), (512, 500, "500 x 512"), (0, 512, "512 x 0")):
        with pytest.raises(ModelError, match=rf"images of {asked} pixels: .* multiples of 64"):
            unet.set_size(found, height, width)


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("conv_in", "input_blocks.0.0"),
        ("down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
        ("mid_block.resnets.1.conv1", "middle_block.2.in_layers.2"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("something_else", "something_else"),
    ],
)
def test_layers_have_the_names_of_stability_s_code(name, spelled):
    assert unet.spell_as_sgm(name, {"layers_per_block": 2}, {}) == spelled
