"""Before the first update, replaying stored transitions gives the probabilities with which they were drawn."""

import contextlib

import pytest
import torch
from model_helpers import attach_tiny, load_tiny, shake_lora

from rlcm_cli.config import override_config
from rlcm_cli.core.trajectory import join_trajectories
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.log_probs import RATIO_TOLERANCE
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.rollout import Rollout, join_conditioning
from rlcm_cli.models.lora import base_model
from rlcm_cli.objectives import find_objective
from rlcm_cli.phases.inputs import read_prompts
from rlcm_cli.phases.sample import assemble_shard, draw_shard, plan_rollout
from rlcm_cli.phases.schedules import restore_schedule
from rlcm_cli.store.checkpoint import TrainerState

SAMPLES = 8


def load_worker(folder, dtype="float32"):
    """A model with a trained adapter, as each process loads it."""
    model = load_tiny(folder, dtype)
    attach_tiny(model)
    shake_lora(model)
    return model


def configure(config, *, batch_size=4, shards=1, dtype="float32"):
    sample = config.sample.model_copy(update={"batch_size": batch_size, "shards": shards, "samples": SAMPLES})
    model = config.model.model_copy(update={"dtype": dtype})
    return config.model_copy(update={"sample": sample, "model": model})


def draw_rollout(workers, config) -> Rollout:
    """Draw a whole plan, shard k by worker k mod N."""
    model = workers[0]
    policy = TrainerState(run="", number=0, optimizer_steps=0, model_digest=model.digest, policy_digest="")
    manifest = plan_rollout(config, read_prompts(config), model, policy, iteration=0)
    shards = []
    for number in range(len(manifest.shards)):
        worker = workers[number % len(workers)]
        shards.append(assemble_shard(manifest, worker, number, list(draw_shard(manifest, worker, number))))
    conditioning, index = join_conditioning(shards)
    return Rollout(
        manifest=manifest,
        schedule=restore_schedule(manifest.schedule),
        trajectories=join_trajectories([shard.trajectories for shard in shards]),
        conditioning=conditioning,
        conditioning_index=index,
        groups=torch.arange(SAMPLES) // manifest.group_size,
        prompts=[prompt for shard in shards for prompt in shard.sample_prompts()],
        tasks=["compression"] * SAMPLES,
        components={},
        revisions={},
        rewards=torch.zeros(SAMPLES),
    )


def ratio_drift(model, rollout, config, micro_batch_size=64) -> float:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    every = Minibatch(order, torch.arange(rollout.trajectories.actions).expand(SAMPLES, -1))
    config = override_config(config, flags={"runtime.micro_batch_size": micro_batch_size})
    learner = Learner(model, rollout, torch.linspace(-1, 1, SAMPLES), config)
    record = find_objective(config).accumulate(learner, every)
    assert abs(record.values["ratio"] - 1) <= record.values["ratio_drift"] + 1e-12
    return record.values["ratio_drift"]


@pytest.fixture(scope="module")
def worker(tiny_lcm):
    return load_worker(tiny_lcm)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_ratio_is_1_for_any_batch_and_micro_batch_size(worker, tiny_config, batch_size, micro_batch_size):
    config = configure(tiny_config, batch_size=batch_size)
    rollout = draw_rollout([worker], config)
    assert len(set(rollout.prompts)) > 1
    assert ratio_drift(worker, rollout, config, micro_batch_size) <= 2e-6


@pytest.mark.parametrize(("shards", "workers"), [(2, 1), (3, 2), (8, 3)])
def test_the_ratio_is_1_for_any_number_of_shards_and_workers(worker, tiny_lcm, tiny_config, shards, workers):
    config = configure(tiny_config, batch_size=3, shards=shards)
    rollout = draw_rollout([load_worker(tiny_lcm) for _ in range(workers)], config)
    assert ratio_drift(worker, rollout, config, 5) <= 2e-6


def test_the_ratio_tells_another_policy(worker, tiny_config):
    """The tests above can fail: drifts that a user could cause are far outside the tolerance."""
    config = configure(tiny_config)
    rollout = draw_rollout([worker], config)
    with base_model(worker):
        other = draw_rollout([worker], config)
    assert ratio_drift(worker, other, config) > 1e-4
    schedule = rollout.manifest.schedule.model_copy(update={"guidance_scale": 5.0})
    guided = Rollout(**{**vars(rollout), "manifest": rollout.manifest.model_copy(update={"schedule": schedule})})
    assert ratio_drift(worker, guided, config) > 1e-4
    shifted = Rollout(**{**vars(rollout), "conditioning_index": rollout.conditioning_index.roll(1)})
    assert ratio_drift(worker, shifted, config) > 1e-4


@pytest.mark.parametrize(
    ("dtype", "folds", "drift"),
    [
        ("float32", False, 0),
        # Drawn with the adapter folded into the weights: some units in the last place.
        ("float32", True, 5e-7),
        ("float16", True, 0),
        ("bfloat16", True, 0),
    ],
)
def test_replaying_in_the_same_batches_is_exact(tiny_lcm, tiny_config, monkeypatch, dtype, folds, drift):
    if not folds:
        monkeypatch.setattr("rlcm_cli.phases.sample.folded_lora", lambda model: contextlib.nullcontext())
    config = configure(tiny_config, batch_size=1, dtype=dtype)
    model = load_worker(tiny_lcm, dtype)
    assert ratio_drift(model, draw_rollout([model], config), config, 1) <= drift


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_end_to_end_within_its_tolerance(tiny_lcm, tiny_config, dtype):
    config = configure(tiny_config, batch_size=3, shards=2, dtype=dtype)
    model = load_worker(tiny_lcm, dtype)
    rollout = draw_rollout([model], config)
    assert str(rollout.trajectories.latents_BSCHW.dtype) == f"torch.{dtype}"
    assert rollout.trajectories.log_probs_BA.dtype == torch.float32
    assert rollout.trajectories.log_probs_BA.isfinite().all()
    for micro_batch_size in (1, 5, 64):
        assert ratio_drift(model, rollout, config, micro_batch_size) <= RATIO_TOLERANCE[dtype]
    gradients = [parameter.grad for parameter in model.denoiser.parameters() if parameter.requires_grad]
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)
