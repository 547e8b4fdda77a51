"""Stable Diffusion's own: what other tools call its makes."""

from types import SimpleNamespace

import pytest

from rlcm_cli.families import FAMILIES
from rlcm_cli.families.stable_diffusion import FAMILY


@pytest.mark.parametrize(
    ("width", "prediction", "title", "architecture"),
    [
        (768, "epsilon", "Stable Diffusion 1", "stable-diffusion-v1/lora"),
        (1024, "v_prediction", "Stable Diffusion 2", "stable-diffusion-v2-768-v/lora"),
        (1024, "epsilon", "Stable Diffusion 2", "stable-diffusion-v2-512/lora"),
    ],
)
def test_its_makes_have_names(width, prediction, title, architecture):
    pipeline = SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(cross_attention_dim=width)),
        scheduler=SimpleNamespace(config=SimpleNamespace(prediction_type=prediction)),
    )
    named, metadata = FAMILY.names.describe(pipeline)
    assert (named, metadata["modelspec.architecture"]) == (title, architecture)


def test_another_width_has_none():
    unet = SimpleNamespace(config=SimpleNamespace(cross_attention_dim=16))
    assert FAMILY.names.describe(SimpleNamespace(unet=unet)) is None


def test_it_is_told_from_sdxl_by_its_text_encoders():
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"]}
    assert FAMILIES["stable-diffusion"] is FAMILY
    assert FAMILY.recognise(index)
    assert not FAMILY.recognise({**index, "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]})
    assert not FAMILY.recognise({**index, "unet": ["diffusers", "UNet2DModel"]})
