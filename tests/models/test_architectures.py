"""Architectures have their published sizes, and draw with random numbers in the place of text encoders."""

import pytest
import torch
from model_helpers import draw

from rlcm_cli.errors import ModelError
from rlcm_cli.families import FAMILIES
from rlcm_cli.models.architectures import build_architecture, made_there
from rlcm_cli.models.parts import RANDOM, find_architecture, recommend_architecture
from rlcm_cli.models.variant import Variant

META = torch.device("meta")
CLIP_L, CLIP_BIG_G = 123_060_480, 694_659_840
KL_VAE, FLUX_VAE = 83_653_863, 83_819_683
T5_XXL = 4_762_310_656
GEMMA_2_2B, DC_AE = 2_614_341_888, 312_250_275
QWEN3_4B = 4_022_468_096
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": KL_VAE, "text_encoder": CLIP_L},
    "sd15-lcm": {"unet": 859_520_964 + 256 * 320, "vae": KL_VAE, "text_encoder": CLIP_L},
    "sdxl-lcm": {
        "unet": 2_567_463_684 + 256 * 320,
        "vae": KL_VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_BIG_G,
    },
    "sdxl-turbo": {"unet": 2_567_463_684, "vae": KL_VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_BIG_G},
    "sana-sprint-0.6b": {"transformer": 593_501_216, "vae": DC_AE, "text_encoder": GEMMA_2_2B},
    "sana-sprint-1.6b": {"transformer": 1_610_237_472, "vae": DC_AE, "text_encoder": GEMMA_2_2B},
    "sana-1.6b": {"transformer": 1_604_462_752, "vae": DC_AE, "text_encoder": GEMMA_2_2B},
    "flux2-klein-4b": {"transformer": 3_875_544_576, "vae": 84_046_115, "text_encoder": QWEN3_4B},
    "z-image-turbo": {"transformer": 6_154_908_736, "vae": FLUX_VAE, "text_encoder": QWEN3_4B},
    "sd35-large-turbo": {
        "transformer": 8_056_627_520,
        "vae": FLUX_VAE,
        "text_encoder": CLIP_L + 768 * 768,
        "text_encoder_2": CLIP_BIG_G,
        "text_encoder_3": T5_XXL,
    },
    "flux-schnell": {
        "transformer": 11_891_178_560,
        "vae": FLUX_VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
    },
    "qwen-image": {"transformer": 20_430_401_088, "vae": 126_892_531, "text_encoder": 8_292_166_656},
}
"""Parameters of the published weights; an LCM's U-Net has a projection of the guidance embedding more."""


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_each_name_is_one_architecture():
    assert len(RANDOM) == sum(len(family.architectures) for family in FAMILIES.values())


@pytest.mark.parametrize("name", RANDOM)
def test_an_architecture_has_as_many_parameters_as_the_published_weights(name):
    family, architecture = find_architecture(name)
    model = build_architecture(name, dtype="bfloat16", device="meta")
    with made_there(META, torch.bfloat16):
        encoders = architecture.build_text_encoders()
    assert encoders.keys() == {part for part in family.modules if part.startswith("text_encoder")}
    assert all(getattr(model.pipeline, part) is None for part in model.pipeline.components if part.startswith("te"))
    parts = {family.denoiser: model.denoiser, "vae": model.pipeline.vae, **encoders}
    assert {part: count(module) for part, module in parts.items()} == PUBLISHED[name]
    assert all(p.dtype == torch.bfloat16 and p.is_meta for module in parts.values() for p in module.parameters())
    assert torch.get_default_dtype() == torch.float32
    recommended = recommend_architecture(name)
    assert model.sampler.kind == recommended.sampler
    assert type(model.pipeline.scheduler).__name__ == model.sampler.scheduler
    assert recommended.image_size in (None, model.image_size)


@pytest.mark.parametrize("name", RANDOM)
def test_prompts_are_encoded_to_random_numbers_of_the_shapes_that_the_denoiser_takes(name):
    """A prediction of the real size, on tensors that have a shape only."""
    model = build_architecture(name, dtype="bfloat16", device="meta", variant=Variant((256, 256)))
    once, again = (model.encode_prompts(["a cat", "a dog"]) for _ in range(2))
    assert not torch.equal(*once["prompt_embeds"])
    model.forget_prompts()
    assert all(torch.equal(once[key], again[key]) for key in once)
    conditioning = {key: table.to("meta") for key, table in once.items()}
    latents = torch.empty(2, *model.latent_shape, dtype=model.dtype, device="meta")
    with torch.no_grad():
        output = model.predict(latents, torch.empty(2, device="meta"), conditioning, 4.0)
    assert output.shape == latents.shape


def test_an_architecture_is_built_at_a_size():
    model = build_architecture("sd15-lcm", dtype="bfloat16", device="meta", variant=Variant((768, 768)))
    assert (model.latent_shape, model.image_size) == ((4, 96, 96), (768, 768))


def test_the_embedded_model_is_an_architecture_with_its_own_weights():
    assert recommend_architecture("emoji-lcm").sampler == "lcm"
    model = build_architecture("emoji-lcm", dtype="float32", device="cpu", variant=Variant((128, 128)))
    assert model.image_size == (128, 128)
    images = draw(model, ["a cat"], [0], steps=2).images
    assert images.shape == (1, 3, 128, 128)


def test_an_unknown_architecture_is_refused():
    words = r"unknown architecture 'sd16' \(did you mean 'sd15'\?\); there are emoji-lcm, .*sd15-lcm"
    for ask in (lambda: build_architecture("sd16", dtype="float32", device="cpu"), lambda: find_architecture("sd16")):
        with pytest.raises(ModelError, match=words):
            ask()
