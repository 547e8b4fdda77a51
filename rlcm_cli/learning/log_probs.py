"""Old log-probabilities with the numerics of training, where rounding would move the ratio that is clipped.

Drawing and replaying round differently: their batches have other sizes, and so other kernels. In float32 the ratio
before the first update stays within 1e-6 of 1. In 16 bits, and in TF32, it is off by up to the clip range and more, so
that clipping would pick transitions at random. There the old log-probabilities are those that the policy which drew
the samples gives in training: the actions stay, what is said about them is measured with the same ruler as later.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from rlcm_cli.config import Config
from rlcm_cli.core.trajectory import flatten_transitions
from rlcm_cli.errors import TrainingError
from rlcm_cli.learning.replay import micro_batches, replay, replay_log_probs
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.objectives import Need, find_objective
from rlcm_cli.processes.job import Processes

RATIO_TOLERANCE = {"float32": 2e-6, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 2e-2}
"""Largest |ratio − 1| before the first update that rounding explains, for the mean reduction."""


def numerics(config: Config) -> str:
    """Name how a run rounds: the dtype of its model, tf32, or as bfloat16 where inputs of layers have 8 bits."""
    if config.model.quantize == "8bit":
        return "bfloat16"
    return "tf32" if config.runtime.tf32 and config.model.dtype == "float32" else config.model.dtype


def needs_refresh(config: Config) -> bool:
    """Return whether the old log-probabilities that were stored in drawing are too coarse for the objective."""
    return numerics(config) != "float32" and Need.OLD_LOG_PROBS in find_objective(config).needs


def refresh_passes(config: Config) -> int:
    """Count the forward passes that refreshing adds to an iteration's: none where there is a single update."""
    settings = config.train
    if config.pretraining.source is not None and config.pretraining.own_steps:  # they move the policy first
        return int(needs_refresh(config))
    single = settings.inner_epochs == 1 and (settings.minibatch_size or config.sample.samples) >= config.sample.samples
    # Pairs are weighed by a pass before the one with a gradient, which needs the old ones already.
    single = single and Need.TRAJECTORY_PAIRS not in find_objective(config).needs
    return int(needs_refresh(config) and not single)


def refresh_log_probs(
    model: LatentModel,
    rollout: Rollout,
    micro_batch_size: int,
    processes: Processes = Processes(),
) -> tuple[Rollout, float]:
    """Replay all stored transitions, and return the rollout with the log-probabilities found.

    Beside it the largest |ratio − 1| of these to the stored ones. Of several processes, each replays a part.
    """
    trajectories = rollout.trajectories
    count, actions = len(trajectories), trajectories.actions
    everything = flatten_transitions(trajectories, torch.arange(count), torch.arange(actions).expand(count, -1))
    log_probs_N = replay_log_probs(model, rollout, everything, micro_batch_size, processes)
    # NaN stays NaN, for the check of the ratio to tell.
    drift = ((log_probs_N - everything.log_probs_N).exp() - 1).abs().max().item() if actions else 0.0
    log_probs_BA = log_probs_N.view(actions, count).T.contiguous()
    refreshed = dataclasses.replace(trajectories, log_probs_BA=log_probs_BA)
    return dataclasses.replace(rollout, trajectories=refreshed), drift


@torch.no_grad()
def measure_drift(model: LatentModel, rollout: Rollout, micro_batch_size: int) -> float:
    """Replay as many stored transitions as a micro-batch has, and return the largest |ratio − 1|; 0 where none is.

    All processes of a processes replay the same ones, so that all find the same.
    """
    trajectories = rollout.trajectories
    count, actions = min(len(trajectories), micro_batch_size), trajectories.actions
    if not actions:
        return 0.0
    some = flatten_transitions(trajectories, torch.arange(count), torch.arange(actions).expand(count, -1))
    _, part = next(micro_batches(model, some, micro_batch_size, Processes()))
    # NaN stays NaN, for the check of the ratio to tell.
    return ((replay(model, rollout, part).log_probs_N - part.log_probs_N).exp() - 1).abs().max().item()


def check_ratio(drift: float, dtype: str, where: str) -> None:
    """Raise `TrainingError` where replaying stored transitions gives other probabilities than drawing them."""
    if math.isnan(drift):
        raise TrainingError(
            f"rollout {where}: the model gives NaN for stored transitions in {dtype}; use --dtype bfloat16 or "
            "float32, or a smaller train.learning_rate"
        )
    tolerance = RATIO_TOLERANCE[dtype]
    if not drift <= 10 * tolerance:
        raise TrainingError(
            f"rollout {where}: before any update the probability ratio is {drift:.2e} away from 1 (rounding in "
            f"{dtype} gives at most {tolerance:.0e}); the model that samples is not the one that trains: another "
            "adapter, dropout, attention kernel, or numerics of another device (then sample and train on the same "
            "kind, or use --off-policy)"
        )
