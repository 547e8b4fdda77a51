"""Before the first update, replaying stored transitions gives the probabilities with which they were drawn."""

import contextlib

import pytest
import torch
from drawn_rollouts import SAMPLES, draw_rollout, ratio_drift
from model_helpers import attach_tiny, load_tiny, shake_lora

from rlcm_cli.learning.log_probs import RATIO_TOLERANCE
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.lora import base_model


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
