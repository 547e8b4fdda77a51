"""How a pipeline is drawn where nothing is asked for, and that deterministic samplers draw to the end."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from tiny_pipelines import build_sd, build_sdxl

from rlcm_cli.config import override_section
from rlcm_cli.core.schedule import sample_trajectories
from rlcm_cli.errors import ModelError
from rlcm_cli.families import FAMILIES, Configs
from rlcm_cli.families._few_step import recommend_lora
from rlcm_cli.models.embedded import embedded_folder
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.parts import recommend
from rlcm_cli.models.schedules import build_schedule
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import SAMPLERS


@pytest.mark.parametrize(
    ("name", "steps", "guidance_scale", "eta"),
    [
        ("emoji-lcm", 4, 4.0, 1.0),
        ("emoji-diffusion", 20, 4.0, 0.0),
        ("emoji-sprint", 4, 4.5, 1.0),
        ("emoji-sana", 20, 4.5, 0.0),
    ],
)
def test_embedded_models_are_drawn_as_their_cards_say(name, steps, guidance_scale, eta):
    found = recommend(name, revision=None)
    assert (found.steps, found.guidance_scale) == (steps, guidance_scale)
    assert SAMPLERS[found.sampler].drawing_settings().model_dump()["eta"] == eta


@pytest.mark.parametrize(
    ("build", "sampler", "expected"),
    [
        (build_sd, None, Recommendation("ddim", 50, 7.5)),
        (build_sdxl, None, Recommendation("ddim", 50, 5.0)),
        (build_sd, "lcm", Recommendation("lcm", 4, 1.0)),
        (build_sdxl, "tcd", Recommendation("tcd", 4, 1.0)),
    ],
)
def test_other_models_are_drawn_as_in_diffusers(tmp_path, build, sampler, expected):
    assert recommend(str(build(tmp_path / "model")), revision=None, sampler=sampler) == expected


HYPER_SD, HUB = "ByteDance/Hyper-SD", "huggingface.co/"


@pytest.mark.parametrize(
    ("lora", "sampler", "steps", "guidance_scale", "training"),
    [
        ("latent-consistency/lcm-lora-sdxl", "lcm", 4, 1.0, {}),
        ("h1t/TCD-SDXL-LoRA", "tcd", 4, 1.0, {}),
        (f"{HYPER_SD}/Hyper-SDXL-1step-lora.safetensors", "tcd", 4, 1.0, {"sampler.gamma": 1.0}),
        (
            f"{HYPER_SD}/Hyper-SD15-8steps-lora.safetensors",
            "ddim",
            8,
            1.0,
            {"sampler.timestep_spacing": "trailing", "sampler.eta": 0.5},
        ),
        (
            f"{HYPER_SD}/Hyper-SDXL-8steps-CFG-lora.safetensors",
            "ddim",
            8,
            5.0,
            {"sampler.timestep_spacing": "trailing", "sampler.eta": 0.5},
        ),
        (
            "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors",
            "euler",
            4,
            1.0,
            {"sampler.eta": 0.5},
        ),
        (
            "tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors",
            "lcm",
            4,
            1.0,
            {"sampler.timesteps": [999, 749, 499, 249]},
        ),
    ],
)
def test_a_distilled_lora_is_drawn_as_its_makers_say(tmp_path, lora, sampler, steps, guidance_scale, training):
    found = recommend(str(build_sdxl(tmp_path / "model")), revision=None, distilled_lora=lora)
    assert (found.sampler, found.steps, found.guidance_scale) == (sampler, steps, guidance_scale)
    assert found.training == training
    assert found.source.startswith(HUB)
    drawing = override_section(SAMPLERS[sampler].drawing_settings(), found.drawing)
    assert getattr(drawing, "eta", 1.0) == (0.0 if sampler in ("ddim", "euler") else 1.0)


def test_a_lora_of_nobody_s_is_drawn_as_an_lcm(tmp_path):
    found = recommend(str(build_sdxl(tmp_path / "model")), revision=None, distilled_lora="me/mine")
    assert found == Recommendation("lcm", 4, 1.0)


def test_few_step_models_are_known_by_name_and_by_scheduler(tmp_path):
    sdxl, turbo = (
        FAMILIES["sdxl"].scheduling.recommend(f"stabilityai/{name}", Configs({}, {}, None), None)
        for name in ("sdxl-turbo", "sd-turbo")
    )
    assert sdxl == Recommendation("euler", 4, 1.0, image_size=(512, 512), source=f"{HUB}stabilityai/sdxl-turbo")
    # Its pipeline adds no noise, its makers' own program does.
    assert (turbo.sampler, turbo.drawing, turbo.training) == ("euler", {"eta": 0.0}, {"sampler.eta": 1.0})
    turbo = recommend(str(build_sdxl(tmp_path / "a", scheduler="turbo")), revision=None)
    assert (turbo.sampler, turbo.steps, turbo.guidance_scale, turbo.training) == ("euler", 4, 1.0, {})
    lightning = recommend(str(build_sdxl(tmp_path / "b", scheduler="lightning")), revision=None)
    assert (lightning.drawing, lightning.training) == ({"eta": 0.0}, {"sampler.eta": 0.5})
    assert recommend(str(tmp_path / "b"), revision=None, sampler="ddim") == Recommendation("ddim", 50, 5.0)


def test_a_latent_consistency_model_is_drawn_as_in_diffusers(tiny_lcm):
    assert recommend(str(tiny_lcm), revision=None) == Recommendation("lcm", 4, 8.5)


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is not a pipeline of diffusers"):
        recommend(str(tmp_path), revision=None)


def test_ddim_without_noise_equals_diffusers():
    model = load_model("emoji-diffusion", revision=None, dtype="float32", device="cpu")
    schedule = build_schedule(model, model.sampler.drawing_settings(), 3)
    conditioning = model.encode_prompts(["a cat"])
    noise = torch.randn(1, 1, *model.latent_shape, generator=torch.Generator().manual_seed(0))

    def predict(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return model.predict(latents, timesteps, conditioning, 4.0)

    with torch.no_grad():
        trajectories, drawn = sample_trajectories(predict, schedule, noise, "mean", torch.float32)
    plain = StableDiffusionPipeline.from_pretrained(
        embedded_folder("emoji-diffusion"), safety_checker=None, requires_safety_checker=False
    )
    plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config, clip_sample=False)
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        "a cat", num_inference_steps=3, guidance_scale=4.0, latents=noise[:, 0], output_type="latent"
    ).images
    assert trajectories.actions == 0
    assert torch.allclose(drawn, expected, atol=1e-4)


def test_a_lora_is_known_by_its_name_alone():
    assert recommend_lora("h1t/TCD-SD15-LoRA").sampler == "tcd"
    assert recommend_lora("me/mine") is None
