"""A sampler is one file: put into a copy of the package, it is configured, drawn with, trained and shown."""

from __future__ import annotations

import json

import pytest
from package_copy import extend_program
from PIL import Image

SAMPLER = '''
"""A sampler of nobody's: the predicted image, with fresh noise to the next level, and none at the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlcm_cli.samplers import Noise, PipelineCall, Sampler, SamplerSettings

if TYPE_CHECKING:
    from rlcm_cli.core.schedule import Schedule


class FreshNoiseSettings(SamplerSettings):
    """The predicted image, noised afresh."""

    kind: Literal["fresh-noise"] = "fresh-noise"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the noise that is fresh; 1 is all of it."""


def _schedule(settings: FreshNoiseSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    import torch

    from rlcm_cli.core.schedule import Schedule, predict_image, predict_noise, roots

    kind = noise.scheduler["prediction_type"]
    timesteps = torch.linspace(len(noise.alphas_cumprod) - 1, 0, steps + 1)[:-1].long()
    alpha, sigma = roots(noise.alphas_cumprod[timesteps])
    signal, level = (torch.cat([values[1:], values.new_tensor([end])]) for values, end in ((alpha, 1.0), (sigma, 0.0)))
    kept = level * (1 - settings.share**2) ** 0.5
    (image_a, image_b), (noise_a, noise_b) = (of(kind, alpha, sigma) for of in (predict_image, predict_noise))
    return Schedule(
        timesteps,
        torch.cat([timesteps[1:], timesteps.new_tensor([-1])]),
        latents_coef=signal * image_a + kept * noise_a,
        output_coef=signal * image_b + kept * noise_b,
        std=level * settings.share,
    )


def _in_diffusers(settings: FreshNoiseSettings, noise: Noise, steps: int) -> PipelineCall:
    return PipelineCall("DDIMScheduler", {"num_inference_steps": steps})


def _find_no_actions(settings: FreshNoiseSettings, steps: int) -> tuple[str, str] | None:
    return (f"sample.steps is {steps}", "use more") if steps < 2 else None


SAMPLER = Sampler(
    settings=FreshNoiseSettings,
    levels="alpha_bar",
    scheduler="DDIMScheduler",
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=_find_no_actions,
    noise_on_last_call=False,
    folds_lora=True,
    fits_pretraining=True,
    distilled=False,
    steps=3,
)
'''
SETTINGS = """
task = "compression"
[model]
name = "emoji-diffusion"
[sample]
samples = 2
batch_size = 2
steps = 3
[train]
minibatch_size = 2
[evaluate]
prompts = 1
images_per_prompt = 1
[runtime]
iterations = 1
device = "cpu"
"""


@pytest.fixture(scope="module")
def rlcm(tmp_path_factory):
    """Run the program of a copy of the package, every room as it is but for one new file."""
    return extend_program(tmp_path_factory.mktemp("copy"), {"samplers/fresh_noise.py": SAMPLER})


def test_a_new_sampler_trains_and_draws(rlcm, tmp_path):
    settings, run = tmp_path / "settings.toml", tmp_path / "run"
    settings.write_text(SETTINGS)
    rlcm("loop", "--config", settings, "--run", run, "--sampler", "fresh-noise", "--set", "sampler.share=0.9", "-q")
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["sampler"] == {"kind": "fresh-noise", "share": 0.9}
    manifest = json.loads((run / "rollouts" / "000000" / "manifest.json").read_text())
    assert manifest["policy"]["kind"] == "fresh-noise"
    assert [std > 0 for std in manifest["schedule"]["std"]] == [True, True, False]
    assert (run / "checkpoints" / "000001").is_dir()

    rlcm("generate", "--lora", run, "--prompt", "cat", "--share", "0.5", "--out", tmp_path / "out", "-q")
    (picture,) = (tmp_path / "out").glob("0*.png")
    with Image.open(picture) as image:
        told = image.info
    assert (told["sampler"], told["share"], told["steps"]) == ("fresh-noise", "0.5", "3")


def test_the_command_line_knows_a_new_sampler(rlcm):
    shown = rlcm("generate", "--help")
    assert "flow, fresh-noise, lcm" in shown
    assert "For fresh-noise: share of the noise that is fresh." in " ".join(shown.split())
    assert "flow, fresh-noise, lcm" in rlcm("loop", "--help")
