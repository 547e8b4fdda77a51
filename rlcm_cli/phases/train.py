"""Phase 3: update the policy of the newest checkpoint on its stored trajectories."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlcm_cli.core.ema import average_weights
from rlcm_cli.core.learning_rate import learning_rate
from rlcm_cli.errors import ConfigError, MissingFileError, TrainingError
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.trained import TRAINED, TrainedWeights
from rlcm_cli.models.weights import exchanged_weights
from rlcm_cli.phases.advantages import compute_advantages, flat_prompts, forget_rewards, reward_metrics
from rlcm_cli.phases.costs import count_forwards, phase_seconds
from rlcm_cli.phases.events import Advanced, Event, IterationTrained, PhaseSkipped, PhaseStarted, Warned
from rlcm_cli.phases.gradient import LARGEST, UpdateMetrics, draw_minibatches
from rlcm_cli.phases.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from rlcm_cli.phases.policy import load_checkpoint
from rlcm_cli.phases.pretraining import step_seed
from rlcm_cli.phases.rescore import is_rescored, numerics, rescore_lessons, rescore_stale_lessons
from rlcm_cli.phases.rollout import read_rollout
from rlcm_cli.phases.run import Run
from rlcm_cli.phases.score import Scorer
from rlcm_cli.phases.team import Team
from rlcm_cli.phases.update import accumulate_update, prepare_lessons
from rlcm_cli.store.checkpoint import (
    AVERAGE_FOLDER,
    latest_checkpoint,
    publish_checkpoint,
    read_average,
    read_optimizer,
    read_statistics,
)
from rlcm_cli.store.reward_versions import changed_rewards
from rlcm_cli.store.run import publish_metrics, read_last_metrics
from rlcm_cli.wording import command

RATIO_TOLERANCE = {"float32": 2e-6, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 2e-2}
"""Largest |ratio − 1| before the first update that rounding explains, for the mean reduction."""


def train(
    run: Run,
    model: DiffusionModel,
    scorers: Mapping[str, Scorer] | None = None,
    team: Team = Team(),  # noqa: B008
    *,
    off_policy: bool = False,
) -> Iterator[Event]:
    """Update the policy of the newest checkpoint on its rollout, and publish the next checkpoint.

    `scorers` are the loaded rewards; only those of `last_step.mode = "backprop"` are used, and loaded where none are
    given. `off_policy` admits a rollout that another policy drew, which importance ratios then correct for, as they
    do where `sample.staleness` has the checkpoint before draw.
    Of several processes, each computes a part of every gradient, all take the same steps, and the leader publishes.
    Raises `MissingFileError` for shards or rewards that are not there, `StalePolicyError`, `TrainingError`.
    """
    run.config.require_actions()
    layout, settings = run.layout, run.config.train
    if off_policy and settings.objective == "reinforce":
        raise ConfigError(
            "--off-policy: train.objective reinforce corrects for no difference between the policies; draw the "
            "samples anew with `rlcm sample`, or use objective ppo"
        )
    iteration = latest_checkpoint(layout)
    if not layout.manifest(iteration).exists():
        if iteration == 0:
            raise MissingFileError(
                f"{layout.root}: holds no rollouts to train on; run `{command('sample', '--run', layout.root)}` first"
            )
        yield PhaseSkipped("train", iteration, "its checkpoint is there and nothing was sampled since")
        return
    clock, processor = time.perf_counter(), time.process_time()
    state = load_checkpoint(run, model, iteration)
    rollout = read_rollout(run, model, state, off_policy=off_policy)
    changed = changed_rewards(read_last_metrics(layout, iteration), {"reward_revisions": rollout.revisions})
    if changed:
        yield Warned(
            f"iteration {iteration}: what is behind {', '.join(changed)} has changed; the prompts' statistics of its "
            "rewards begin again"
        )
    known = forget_rewards(read_statistics(layout, iteration), run.config, changed)
    advantages, statistics = compute_advantages(rollout, run.config, known)
    flat = flat_prompts(rollout, run.config)
    if flat:
        yield Warned(
            f"iteration {iteration + 1}: all images of a prompt have the same reward, for {len(flat)} prompts "
            f"(such as '{flat[0]}'): they teach nothing"
        )
    if not advantages.any():
        raise TrainingError(
            f"{layout.rollout(iteration)}: all rewards are equal ({rollout.rewards[0]:.4g}), so there is nothing to "
            "learn from; use another reward, or more images an iteration"
        )

    lessons, replay_drift = prepare_lessons(run, model, rollout, advantages, scorers), None
    on_policy = not off_policy and run.config.sample.drawing_checkpoint(iteration) == iteration
    rescored, rescoring = is_rescored(run.config) and not off_policy, 0
    if rescored:
        anew = (
            rescore_lessons(model, lessons, run.config, team)
            if on_policy
            else rescore_stale_lessons(run, model, lessons, team)
        )
        lessons, replay_drift, rescoring = anew.lessons, anew.drift, anew.passes
    trained = TRAINED[settings.parameters]
    parameters = trained.parameters(model)
    rate = learning_rate(
        settings.learning_rate,
        iteration,
        warmup=settings.lr_warmup_iterations,
        schedule=settings.lr_schedule,
        decay_iterations=settings.lr_decay_iterations,
        decay_every=settings.lr_decay_every,
    )
    optimizer = make_optimizer(parameters, settings, rate)
    restore_optimizer(optimizer, parameters, read_optimizer(layout, iteration))
    ema = start_average(run, model, trained, iteration)
    # On the host: of a whole U-Net there may be no room for another one beside it.
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}

    count = len(advantages)
    updates = math.ceil(count / (settings.minibatch_size or count)) * settings.inner_epochs
    yield PhaseStarted("train", iteration, updates, "updates")
    records: list[UpdateMetrics] = []
    model.adapter_digest = None  # from the first step on the weights are no file's, also where a later one fails
    for minibatch in draw_minibatches(rollout, settings, run.config.seed, iteration):
        optimizer.zero_grad(set_to_none=True)
        seed = step_seed(run.config.seed, iteration, len(records))
        record = accumulate_update(model, lessons, minibatch, run.config, seed, team)
        if not records:
            drift = record.values[LARGEST] if replay_drift is None else replay_drift
        if not records and on_policy:
            check_ratio(drift, numerics(run.config), layout.rollout(iteration).name)
            if iteration == 0 and "clip_fraction" in record.values and drift > settings.clip_range / 10:
                yield Warned(
                    f"rounding in {numerics(run.config)} moves the probability ratio by {drift:.1e}, not small beside "
                    f"train.clip_range {settings.clip_range:.0e}: "
                    + (
                        "old log-probabilities are taken from training itself, so that it clips nothing at random"
                        if rescored
                        else "it clips updates at random; --dtype float32 learns better"
                    )
                )
        norm = float(
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm, error_if_nonfinite=False)
        )
        record.values["grad_norm"] = norm
        if not math.isfinite(norm):
            raise TrainingError(
                f"iteration {iteration + 1}: the gradient is {norm}; use --dtype bfloat16 or float32, or a "
                "smaller train.learning_rate"
            )
        optimizer.step()
        if ema is not None and settings.ema_decay is not None:
            ema = average_weights(ema, parameters, settings.ema_decay)
        records.append(record)
        yield Advanced(1)
    if all(torch.equal(before[name], parameter.cpu()) for name, parameter in parameters.items()):
        raise TrainingError(
            f"iteration {iteration + 1}: {len(records)} optimizer steps changed no weight (learning rate {rate:.3g}); "
            "the gradient does not reach what is trained, or the rate has decayed to 0"
        )

    cpu_seconds = sum(part["cpu_seconds"] for part in team.gather({"cpu_seconds": time.process_time() - processor}))
    metrics = {
        "iteration": iteration,
        "checkpoint": iteration + 1,
        **reward_metrics(rollout, run.config),
        "reward_revisions": dict(rollout.revisions),
        **average(records),
        "ratio_drift": drift,
        "rescored": int(rescored),
        "learning_rate": rate,
        "flat_prompts": len(flat),
        "samples": count,
        "updates": len(records),
        "micro_batch_size": run.config.runtime.micro_batch_size,
        "gradient_checkpointing": run.config.runtime.gradient_checkpointing,
        "forwards": count_forwards(run.config, model, rollout, rescoring=rescoring),
        "train_seconds": time.perf_counter() - clock,
        **phase_seconds(layout, rollout.manifest, cpu_seconds, team),
        "finished_at": time.time(),
    }
    if team.leads:
        # Metrics first: a checkpoint says that its iteration is done, and no phase looks back.
        publish_metrics(layout, iteration + 1, metrics)
        publish_checkpoint(
            layout,
            iteration + 1,
            write_weights=lambda folder: write_weights(model, trained, ema, folder),
            model_digest=model.digest,
            optimizer=optimizer_tensors(optimizer, parameters),
            optimizer_steps=state.optimizer_steps + len(records),
            statistics=statistics,
        )
    team.wait()
    yield IterationTrained(iteration + 1, metrics)


def start_average(
    run: Run, model: DiffusionModel, trained: TrainedWeights, iteration: int
) -> Mapping[str, Tensor] | None:
    """Give the moving average of the weights, by name, that training goes on with; None: none is kept.

    The model holds the weights of the checkpoint, which are the average's own start where it has none.
    """
    if run.config.train.ema_decay is None:
        return None
    kept = read_average(run.layout, iteration)
    if kept is not None:
        return trained.bind(model, kept)
    return {name: parameter.detach().clone() for name, parameter in trained.parameters(model).items()}


def write_weights(
    model: DiffusionModel, trained: TrainedWeights, average: Mapping[str, Tensor] | None, folder: Path
) -> None:
    """Write a checkpoint's weights and, where one is kept, their average as a file of the same kind."""
    trained.save(model, folder)
    if average is not None:
        with exchanged_weights(trained.parameters(model), average):
            trained.save(model, folder / AVERAGE_FOLDER)


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


def average(records: list[UpdateMetrics]) -> dict[str, float]:
    """Average the metrics of an iteration's optimizer steps."""
    return {
        name: sum(record.values[name] for record in records) / len(records)
        for name in records[0].values
        if name != LARGEST
    }
