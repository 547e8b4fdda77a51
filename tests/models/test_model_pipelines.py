"""Encoding, guided predictions and pixels are those of diffusers' own pipelines, for each make of model."""

import functools
import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from model_helpers import load_tiny
from tiny_pipelines import LATENTS_MEAN, LATENTS_STD, build_sd, build_sdxl

from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import DTYPES

BUILDERS = {
    "sd": build_sd,
    "sd-v": functools.partial(build_sd, scheduler="v_prediction"),
    "sdxl": build_sdxl,
    "sdxl-empty": functools.partial(build_sdxl, zeros_for_empty_prompt=False),
    "sdxl-lcm": functools.partial(build_sdxl, scheduler="lcm", guided_by_embedding=True),
}
PROMPTS = ["cat", "a dog on blue"]
NAMES = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request, tmp_path_factory):
    return BUILDERS[request.param](tmp_path_factory.mktemp("models") / request.param)


def load_plain(folder, dtype="float32"):
    """Load the pipeline as a user of diffusers does, not through this package."""
    kind, settings = StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}
    if "sdxl" in folder.name:
        kind, settings = StableDiffusionXLPipeline, {"add_watermarker": False}
    with quiet_libraries():
        pipeline = kind.from_pretrained(folder, torch_dtype=DTYPES[dtype], **settings)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return pipeline


def test_prompts_are_encoded_as_the_pipeline_does(folder):
    model, plain = load_tiny(folder), load_plain(folder)
    guided_twice = "lcm" not in folder.name
    names = [
        name
        for name in NAMES
        if (guided_twice or "negative" not in name) and ("xl" in folder.name or "pooled" not in name)
    ]
    tables = model.encode_prompts(PROMPTS)
    assert list(tables) == names + ["time_ids"] * ("xl" in folder.name)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            encoded = plain.encode_prompt(
                prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=guided_twice
            )
        for name in names:
            assert torch.equal(tables[name][row, None], encoded[NAMES.index(name)]), name
    if "xl" in folder.name:
        assert tables["time_ids"].tolist() == [[16.0, 16, 0, 0, 16, 16]] * 2
    assert not torch.equal(*tables["prompt_embeds"])
    if guided_twice:
        assert bool(tables["negative_prompt_embeds"].any()) == (folder.name != "sdxl")


def test_tables_have_a_row_a_prompt_and_know_no_neighbours(folder):
    model = load_tiny(folder)
    tables = model.encode_prompts(["cat", "dog", "cat"])
    assert {len(table) for table in tables.values()} == {3}
    alone = load_tiny(folder).encode_prompts(["cat"])
    for name, table in tables.items():
        assert torch.equal(table[0], alone[name][0])
        assert torch.equal(table[2], alone[name][0])


def record_predictions(pipeline, monkeypatch, conditioning, guidance_scale):
    """Draw with diffusers; give what its scheduler was handed at each step: (prediction, timestep, latents)."""
    steps, step = [], pipeline.scheduler.step
    monkeypatch.setattr(
        pipeline.scheduler,
        "step",
        lambda output, t, latents, **rest: steps.append((output, t, latents)) or step(output, t, latents, **rest),
    )
    pipeline(
        **{name: table for name, table in conditioning.items() if name != "time_ids"},
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(2)],
        output_type="latent",
    )
    return steps


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5, 7.5])
def test_a_prediction_is_that_of_the_pipeline(folder, monkeypatch, guidance_scale):
    model = load_tiny(folder)
    conditioning = model.encode_prompts(PROMPTS)
    steps = record_predictions(load_plain(folder), monkeypatch, conditioning, guidance_scale)
    assert len(steps) == 3
    for output, t, latents in steps:
        with torch.no_grad():
            predicted = model.predict(latents, t.repeat(2), conditioning, guidance_scale)
        assert torch.equal(predicted, output)


def test_guidance_acts_and_is_a_single_call_without_it(folder, monkeypatch):
    model = load_tiny(folder)
    conditioning = model.encode_prompts(PROMPTS)
    latents, timesteps = torch.ones(2, *model.latent_shape), torch.tensor([981, 21])
    batches, call = [], model.denoiser.forward
    monkeypatch.setattr(
        model.denoiser,
        "forward",
        lambda latents, *rest, **named: batches.append(len(latents)) or call(latents, *rest, **named),
    )
    with torch.no_grad():
        predictions = [model.predict(latents, timesteps, conditioning, scale) for scale in (1.0, 2.0, 5.0)]
    assert batches == ([2, 2, 2] if model.guided_by_embedding else [2, 4, 4])
    assert model.guided_by_embedding == ("lcm" in folder.name)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(predictions))


def test_predicting_at_mixed_timesteps_equals_one_by_one(folder):
    model = load_tiny(folder)
    conditioning = model.encode_prompts(PROMPTS)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([981, 21])
    with torch.no_grad():
        together = model.predict(latents, timesteps, conditioning, 5.0)
        alone = [
            model.predict(latents[row, None], timesteps[row, None], model.encode_prompts([PROMPTS[row]]), 5.0)
            for row in range(2)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pixels_are_those_of_the_pipeline(folder, dtype):
    model, plain = load_tiny(folder, dtype), load_plain(folder, dtype)
    # As the model has it on a CPU: another layout is another kernel, which rounds otherwise in bfloat16.
    plain.vae.to(memory_format=torch.channels_last)
    drawn = []
    for output_type in ("latent", "pil"):
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(2)]
        with quiet_libraries():
            drawn.append(plain(PROMPTS, num_inference_steps=2, generator=generators, output_type=output_type).images)
    latents, pictures = drawn
    images = model.decode(latents)
    expected = torch.from_numpy(np.stack([np.array(picture) for picture in pictures])).permute(0, 3, 1, 2)
    assert (images.shape, images.dtype) == ((2, 3, *model.image_size), torch.uint8)
    assert torch.equal(images, expected)
    assert images.unique().numel() > 20


def test_float_images_are_those_of_decode_before_rounding_and_carry_gradients(folder):
    model = load_tiny(folder)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = model.decode_floats(latents)
    assert images.dtype == torch.float32
    assert torch.equal(images.detach().round().to(torch.uint8), model.decode(latents.detach()))
    (gradient,) = torch.autograd.grad(images[0].mean(), latents)
    assert gradient[0].abs().max() > 1e-3
    assert not gradient[1].any(), "an image depends on its own latents alone"
    assert (model.decode_floats(1e4 * latents).detach() - 127.5).abs().max() <= 127.5


def test_the_autoencoder_of_sdxl_runs_in_float32_where_float16_would_overflow(tmp_path):
    assert load_tiny(build_sdxl(tmp_path / "sdxl"), "float16").pipeline.vae.dtype == torch.float32
    assert load_tiny(tmp_path / "sdxl", "bfloat16").pipeline.vae.dtype == torch.bfloat16
    assert load_tiny(build_sd(tmp_path / "sd"), "float16").pipeline.vae.dtype == torch.float16


def test_the_statistics_of_sdxl_latents_are_undone(tmp_path):
    model = load_tiny(build_sdxl(tmp_path / "sdxl"))
    latents = torch.ones(1, *model.latent_shape)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD))
    with torch.no_grad():
        image = model.pipeline.vae.decode(latents * std / 0.13025 + mean).sample
    torch.testing.assert_close(model.decode_floats(latents), (image / 2 + 0.5).clamp(0, 1) * 255, rtol=0, atol=1e-3)


def test_the_sizes_are_those_of_the_pipeline(folder):
    model = load_tiny(folder)
    assert model.latent_shape == (4, 8, 8)
    assert model.image_size == (16, 16)
    assert torch.equal(model.alphas_cumprod, load_plain(folder).scheduler.alphas_cumprod)
