"""Each policy on each make of pipeline: images are diffusers' own, the ratio starts at 1, the KL is what it says."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from conftest import tiny_values
from drawn_rollouts import SAMPLES, draw_rollout, ratio_drift
from model_helpers import attach_tiny, shake_lora
from tiny_pipelines import build_sd, build_sdxl, save_distilled_lora

from rlcm_cli.config import Config, override_config, parse_config
from rlcm_cli.core.gaussian import gaussian_log_prob
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.core.trajectory import flatten_transitions
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.replay import replay
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora import base_model, lora_parameters
from rlcm_cli.objectives import find_objective
from rlcm_cli.phases.sample import draw_batch
from rlcm_cli.runs.policy import load_configured_model
from rlcm_cli.runs.schedules import drawing_schedule

PROMPTS, SEEDS = ["cat", "a dog on blue", "cat"], [5, 2**62 + 1, 7]


@dataclass(frozen=True)
class Case:
    """A pipeline in the hub's layout, and how it is sampled by this package and by diffusers."""

    build: Callable[..., Any]
    scheduler: str
    sample: dict[str, Any]
    """Settings of [sample]."""
    sampler: dict[str, Any]
    call: dict[str, Any] = field(default_factory=dict)
    """The same in the call of the pipeline."""
    distilled: bool = False


DDIM = {"kind": "ddim", "eta": 1.0}
CASES = {
    "ddim": Case(build_sd, "DDIMScheduler", {"steps": 5}, DDIM, {"eta": 1.0}),
    "ddim-half": Case(build_sd, "DDIMScheduler", {"steps": 3}, {"kind": "ddim", "eta": 0.5}, {"eta": 0.5}),
    "ddim-v": Case(
        functools.partial(build_sd, scheduler="v_prediction"), "DDIMScheduler", {"steps": 5}, DDIM, {"eta": 1.0}
    ),
    "ddim-sdxl": Case(build_sdxl, "DDIMScheduler", {"steps": 3}, DDIM, {"eta": 1.0}),
    "lcm-sdxl": Case(
        functools.partial(build_sdxl, scheduler="lcm", guided_by_embedding=True),
        "LCMScheduler",
        {"steps": 4},
        {"kind": "lcm"},
    ),
    "lcm-lora": Case(build_sd, "LCMScheduler", {"steps": 4}, {"kind": "lcm"}, distilled=True),
    "tcd": Case(build_sd, "TCDScheduler", {"steps": 4}, {"kind": "tcd", "gamma": 0.3}, {"eta": 0.3}, distilled=True),
}
GUIDANCE = 3.0


@dataclass(frozen=True)
class Made:
    """A case, made."""

    case: Case
    plain: Any
    """The pipeline as a user of diffusers loads it."""
    model: LatentModel
    """The same by this package, with a fresh adapter."""
    settings: dict[str, Any]
    """Of [model]."""

    def config(self, **train: Any) -> Config:
        sample = {"samples": SAMPLES, "guidance_scale": GUIDANCE, "shards": 1, **self.case.sample}
        values = tiny_values(Path(self.settings["name"]), sample=sample, train=train)
        return parse_config({**values, "model": self.settings, "sampler": self.case.sampler})


@pytest.fixture(scope="module", params=CASES)
def shared(request, tmp_path_factory):
    case = CASES[request.param]
    folder = case.build(tmp_path_factory.mktemp("models") / request.param)
    settings = {"name": str(folder)}
    if case.distilled:
        settings["distilled_lora"] = str(
            save_distilled_lora(load_plain(case, folder), tmp_path_factory.mktemp("lora"))
        )
    plain = load_plain(case, folder, settings.get("distilled_lora"))
    config = parse_config({**tiny_values(folder, sampler=case.sampler), "model": settings})
    model = load_configured_model(config.model, config.sampler.kind, "cpu")
    attach_tiny(model)
    return Made(case, plain, model, settings)


@pytest.fixture
def made(shared):
    """Give the case; its adapter is put back as it was."""
    fresh = {name: parameter.detach().clone() for name, parameter in lora_parameters(shared.model).items()}
    yield shared
    with torch.no_grad():
        for name, parameter in lora_parameters(shared.model).items():
            parameter.copy_(fresh[name])
            parameter.grad = None


def load_plain(case, folder, lora=None):
    """Load the pipeline as a user of diffusers does, with the scheduler of the sampler and the LoRA fused."""
    with quiet_libraries():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        kind = getattr(diffusers, case.scheduler)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, clip_sample=False)
        if lora is not None:
            pipeline.load_lora_weights(lora)
            pipeline.fuse_lora()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance_scale", [1.0, GUIDANCE])
def test_images_are_those_of_the_pipeline_of_diffusers(made, guidance_scale):
    case, model = made.case, made.model
    with torch.no_grad(), quiet_libraries():
        expected = made.plain(
            PROMPTS,
            num_inference_steps=case.sample["steps"],
            guidance_scale=guidance_scale,
            generator=[seed_generator(seed) for seed in SEEDS],
            output_type="pt",
            **case.call,
        ).images
    schedule = drawing_schedule(made.config().sampler, case.sample["steps"], model)
    images = draw_batch(model, schedule, PROMPTS, SEEDS, guidance_scale=guidance_scale, reduction="mean").images
    # The latents agree to rounding, which may carry single pixels over a half.
    difference = (images.int() - expected.mul(255).round().int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 2e-3
    assert all(image.unique().numel() > 20 for image in images)
    assert not torch.equal(images[0], images[2])


def test_the_ratio_is_1_before_the_first_update(made):
    model, config = made.model, made.config()
    shake_lora(model)
    rollout = draw_rollout([model], config)
    assert made.case.scheduler.lower().startswith(rollout.manifest.policy.kind)
    assert len(set(rollout.prompts)) > 1
    # Twice what an LCM has: the noise of DDIM's last steps is small beside its latents, and so beside their rounding.
    assert ratio_drift(model, rollout, config, 5) <= 4e-6
    # It could fail: another guidance is another policy.
    schedule = rollout.manifest.schedule.model_copy(update={"guidance_scale": GUIDANCE + 1})
    manifest = rollout.manifest.model_copy(update={"schedule": schedule})
    assert ratio_drift(model, type(rollout)(**{**vars(rollout), "manifest": manifest}), config) > 1e-5


def test_the_kl_is_0_at_the_start_and_that_of_sampled_actions_later(made):
    model, config = made.model, made.config(kl_weight=0.1)
    assert measure_kl(model, draw_rollout([model], config), config) == 0

    shake_lora(model)
    rollout = draw_rollout([model], config)
    kl = measure_kl(model, rollout, config)
    actions = rollout.trajectories.actions
    part = flatten_transitions(rollout.trajectories, torch.arange(SAMPLES), torch.arange(actions).expand(SAMPLES, -1))
    with torch.no_grad():
        policy = replay(model, rollout, part).gaussian
        with base_model(model):
            base = replay(model, rollout, part).gaussian
    generator, rounds = torch.Generator().manual_seed(0), []
    for _ in range(300):
        action = policy.mean + policy.std * torch.randn(policy.mean.shape, generator=generator)
        own, other = (gaussian_log_prob(action.double(), g.mean.double(), g.std, "mean") for g in (policy, base))
        rounds.append((own - other).mean())
    estimates = torch.stack(rounds)
    error = (estimates.std() / math.sqrt(len(rounds))).item()
    assert error < 0.05 * kl, "a test with such an error could not fail"
    assert abs(estimates.mean().item() - kl) <= 4 * error


def measure_kl(model, rollout, config):
    actions = rollout.trajectories.actions
    every = Minibatch(torch.arange(SAMPLES), torch.arange(actions).expand(SAMPLES, -1))
    config = override_config(config, flags={"runtime.micro_batch_size": 24})
    learner = Learner(model, rollout, torch.linspace(-1, 1, SAMPLES), config)
    record = find_objective(config).accumulate(learner, every)
    return record.values["kl_to_base"]
