"""The shipped presets: what they hold of the papers, and that each of them runs on an embedded model."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

from rlcm_cli.cli.app import main
from rlcm_cli.config import EMBEDDED_MODELS, Config, resolve_config, task_names, task_text
from rlcm_cli.rewards import REWARDS
from rlcm_cli.samplers.flow import flow_schedule

PAPERS_MODEL = "papers/model"
SMALL = {
    "sample.steps": 2,
    "sample.samples": 8,
    "sample.batch_size": 8,
    "train.minibatch_size": 8,
    "evaluate.prompts": 3,
    "evaluate.images_per_prompt": 1,
}


def published(task: str) -> Config:
    """A preset as it is for any model but an embedded one."""
    return resolve_config([task], flags={"model.name": PAPERS_MODEL})


def test_each_experiment_of_the_papers_has_a_preset():
    assert {
        *("compression", "incompression", "aesthetic", "prompt_image_alignment", "mirror_symmetry"),
        *("ddpo-compression", "ddpo-incompression", "ddpo-aesthetic", "ddpo-alignment"),
        *("rwr-compression", "rwr-sparse-compression", "rebel-compression", "rebel-aesthetic"),
        *("grpo-hps", "pinterest-imagereward", "draft", "nft", "awm", "pso"),
        *("flow-grpo", "flow-grpo-fast", "mixgrpo", "grpo-guard", "dppo", "rtdmd"),
    } == set(task_names())


@pytest.mark.parametrize("task", task_names())
def test_a_preset_opens_with_what_it_is_for_and_its_source(task):
    purpose, *source = task_text(task).partition("\n\n")[0].splitlines()
    assert 20 < len(purpose) < 110
    assert purpose.endswith(".")
    assert re.search(r"arXiv \d{4}\.\d{5}", " ".join(source))


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("model", [None, *EMBEDDED_MODELS, PAPERS_MODEL])
def test_every_preset_is_valid_with_every_kind_of_model(task, model):
    resolved = resolve_config([task], flags={"model.name": model})
    assert set(resolved.reward_names()) <= set(REWARDS)
    if model in (None, *EMBEDDED_MODELS):
        assert not {"aesthetic", "prompt_image_alignment", "hps_v2", "image_reward", "pick_score"} & set(
            resolved.reward_names()
        )


@pytest.mark.parametrize(
    "task", [task for task in task_names() if task.startswith(("ddpo", "rwr", "grpo-hps", "pint"))]
)
def test_experiments_with_stable_diffusion_take_the_embedded_one(task):
    assert resolve_config([task]).model.name == "emoji-diffusion"
    assert (published(task).sample.steps, published(task).sampler.eta) == (50, 1.0)


@pytest.mark.parametrize(
    ("task", "samples", "updates", "buffer", "iterations"),
    [
        ("ddpo-compression", 256, 4, 16, 100),
        ("ddpo-incompression", 256, 4, 16, 100),
        ("ddpo-aesthetic", 256, 2, 32, 200),
        ("ddpo-alignment", 288, 2, 32, 200),
    ],
)
def test_ddpo_as_published(task, samples, updates, buffer, iterations):
    preset = published(task)
    sample, train = preset.sample, preset.train
    assert (sample.samples, sample.samples / train.minibatch_size) == (samples, updates)
    assert (sample.guidance_scale, train.learning_rate, train.weight_decay) == (5.0, 3e-4, 1e-4)
    assert (preset.objective.clip_range, train.advantage_clip, train.max_grad_norm) == (1e-4, 5.0, 1.0)
    assert (preset.advantage_kind, train.buffer_size, train.min_count) == ("per-prompt", buffer, 16)
    assert (preset.objective.kind, train.parameters, preset.runtime.iterations) == ("ppo", "lora", iterations)


def test_rwr_as_published():
    presets = published("rwr-compression"), published("rwr-sparse-compression")
    rwr, sparse = (preset.train for preset in presets)
    # A softmax of 0.2 x the reward in kB: not normalised, and no advantage is clipped.
    assert (presets[0].objective.kind, presets[0].objective.beta, rwr.inner_epochs) == ("rwr", 0.2, 5)
    assert (presets[0].advantage_kind, rwr.advantage_clip) == ("none", 0)
    embedded = resolve_config(["rwr-compression"])
    assert (embedded.advantage_kind, embedded.objective.beta) == ("batch", 2.0)
    assert (presets[1].objective.kind, presets[1].objective.share, sparse.inner_epochs) == ("rwr-sparse", 0.1, 50)
    for task, train in (("rwr-compression", rwr), ("rwr-sparse-compression", sparse)):
        preset = published(task)
        assert (train.parameters, train.learning_rate, train.weight_decay) == ("full", 1e-5, 1e-4)
        assert (preset.sample.samples, preset.runtime.iterations) == (10240, 10)
        assert preset.sample.samples * train.inner_epochs / train.minibatch_size == 400  # steps a round


@pytest.mark.parametrize(("task", "like"), [("rebel-compression", "compression"), ("rebel-aesthetic", "aesthetic")])
def test_rebel_differs_from_rlcm_by_its_objective_and_its_pairs(task, like):
    rebel, ppo = published(task), published(like)
    assert (rebel.sample.samples, rebel.sample.group_size) == (2 * ppo.sample.samples, 2)
    same = {"minibatch_size", "advantage_clip", "max_grad_norm"}
    assert (rebel.train.advantage_clip, rebel.train.max_grad_norm) == (0, 0)  # its published loop has neither
    assert rebel.train.model_dump(exclude=same) == ppo.train.model_dump(exclude=same)
    assert (rebel.objective.kind, rebel.objective.rebel_lr) == ("rebel", 1.0)
    assert (rebel.rewards, rebel.prompts, rebel.lora) == (ppo.rewards, ppo.prompts, ppo.lora)


def test_pinterest_as_published():
    preset = published("pinterest-imagereward")
    train = preset.train
    assert (preset.rewards, preset.sample.guidance_scale) == ({"image_reward": 1.0}, 7.0)
    assert (train.parameters, train.learning_rate, train.weight_decay) == ("full", 2e-6, 1e-2)
    assert (train.advantages, preset.objective.clip_range) == ("batch", 1e-4)
    assert (train.advantage_clip, train.max_grad_norm, preset.sampler.eta) == (10.0, 0, 1.0)
    assert preset.pretraining.own_steps == 1  # before the five of the objective
    # Five steps of the optimizer on all samples, each on one of the 50 timesteps.
    assert (preset.sample.samples, train.minibatch_size, train.inner_epochs) == (2048, 2048, 5)
    assert round(train.timestep_fraction * preset.sample.steps) == 1


def test_grpo_as_published():
    preset = published("grpo-hps")
    train = preset.train
    assert (preset.rewards, preset.sample.samples, preset.sample.group_size) == ({"hps_v2": 1.0}, 512, 16)
    assert (preset.objective.kind, preset.advantage_kind, train.minibatch_size) == ("grpo", "group", 256)
    assert (train.parameters, train.learning_rate, preset.objective.clip_range) == ("full", 1e-5, 1e-4)


FLOW = {
    # task → noise, η, calls that may add noise; samples, group; objective, its limit; deviation, rate, KL
    "flow-grpo": (("flow-sde", 0.7, None), (1152, 24), ("grpo", 1e-4), ("batch", "K"), (3e-4, 1e-3)),
    "flow-grpo-fast": (("cps", 0.8, (0, 1, 2, 3, 4)), (1152, 18), ("grpo", 7.5e-6), ("batch", "K"), (3e-4, 0)),
    "grpo-guard": (("flow-sde", 0.7, None), (1152, 24), ("grpo-guard", 4e-6), ("own", "K"), (1e-4, 0)),
    "dppo": (("flow-sde", 0.7, (0, 1, 2, 3, 4)), (768, 16), ("dppo", 1e-5), ("batch", None), (3e-4, 0)),
    "mixgrpo": (("flow-sde", 0.7, None), (384, 12), ("grpo", 1e-4), ("own", None), (1e-5, 0)),
}


@pytest.mark.parametrize("task", FLOW)
def test_flow_matching_as_published(task):
    preset = published(task)
    train, sampler, sample = preset.train, preset.sampler, preset.sample
    limit = getattr(preset.objective, "max_kl", getattr(preset.objective, "clip_range", None))
    assert FLOW[task] == (
        (sampler.noise, sampler.eta, sampler.window),
        (sample.samples, sample.group_size),
        (preset.objective.kind, limit),
        (train.deviation, train.deviation_divisor),
        (train.learning_rate, train.kl_weight),
    )
    assert (preset.advantage_kind, sampler.kind, train.max_grad_norm) == ("group", "flow", 1.0)
    assert sample.samples / train.minibatch_size == (4 if task == "mixgrpo" else 2)  # optimizer steps an iteration


def test_rtdmd_as_published():
    preset = published("rtdmd")
    train, matching = preset.train, preset.matching
    assert (preset.sampler.noise, preset.sampler.eta, preset.sampler.sigmas) == ("cps", 0.9, (1.0, 0.75, 0.5, 0.25))
    assert (preset.sample.steps, preset.sample.group_size, preset.sample.guidance_scale) == (4, 24, 1.0)
    assert (preset.advantage_kind, train.deviation, train.trained_actions(3)) == ("group", "batch", 2)
    assert (preset.lora.rank, preset.lora.alpha, train.learning_rate, train.kl_weight) == (32, 64, 3e-6, 0)
    assert (matching.weight, matching.calls, matching.times) == (1e-3, "last", "logit-normal")
    assert (matching.learning_rate, matching.steps, preset.teacher.guidance_scale) == (1e-6, 1, 4.0)
    assert (preset.last_step.mode, preset.last_step.calls) == ("backprop", 1)
    sigmas = torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)
    std = flow_schedule(sigmas, torch.full((4,), 0.9, dtype=torch.float64), "cps").std[:3]
    assert (1e-5 / (2 * std**2)).tolist() == pytest.approx([9.1e-6, 2.05e-5, 8.2e-5], rel=0.01)


def test_windows_as_published():
    fast, mixed, dppo = (published(task).sampler for task in ("flow-grpo-fast", "mixgrpo", "dppo"))
    assert (fast.window_size, fast.window_every) == (3, None)
    assert (mixed.window_size, mixed.window_every, mixed.shift) == (4, 25, 3.0)
    assert dppo.random_calls == 3


def test_the_clip_range_of_cps_code_is_carried_over_to_densities():
    preset = published("flow-grpo-fast")
    even = torch.linspace(1, 0, 11, dtype=torch.float64)
    sigmas = 3 * even / (1 + 2 * even)  # Stable Diffusion 3's shift, ten steps
    std = flow_schedule(sigmas, torch.full((10,), preset.sampler.eta, dtype=torch.float64), "cps").std[:5]
    limits = 1e-5 / (2 * std**2)  # of the ratio of densities, where that code has 1e-5 of -mean((x' - mu)²)
    assert limits.min() < preset.objective.clip_range < limits.max()
    assert limits.tolist() == pytest.approx([5.9e-6, 6.5e-6, 7.2e-6, 8.3e-6, 9.8e-6], rel=0.01)
    assert preset.train.step_weights == "variance"


@pytest.mark.parametrize("task", task_names())
def test_a_preset_trains_the_embedded_model_for_an_iteration(task, tmp_path: Path):
    windowed = getattr(resolve_config([task]).sampler, "has_window", False)
    small = {**SMALL, "sample.steps": 10} if windowed else SMALL
    settings = [f"--set={key}={value}" for key, value in small.items()]
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--task", task, "--iterations=1", f"--run={tmp_path}", "--no-cache", "--quiet", *settings])
    assert not leaving.value.code
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = json.loads(line)
    trained = tomllib.loads(task_text(task))["embedded"].get("rewards", published(task).rewards)
    assert set(metrics["rewards"]) == set(trained)
    assert metrics.get("ratio_drift", 0.0) < 1e-5  # of an objective without log-probabilities there is none
