"""Phase 3: update the policy of the newest checkpoint on its stored trajectories."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlcm_cli.config import TrainSettings
from rlcm_cli.core.ema import average_weights
from rlcm_cli.errors import ConfigError, ForeignFileError, MissingFileError, TrainingError
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.trained import TRAINED, TrainedWeights
from rlcm_cli.models.weights import exchanged_weights
from rlcm_cli.phases.advantages import compute_advantages, flat_prompts, forget_rewards, reward_metrics
from rlcm_cli.phases.costs import count_forwards, drawing_forwards, phase_seconds, read_phase_times
from rlcm_cli.phases.events import Advanced, Event, IterationTrained, PhaseSkipped, PhaseStarted, Warned
from rlcm_cli.phases.gradient import LARGEST, UpdateMetrics, draw_minibatches
from rlcm_cli.phases.last_step import tell_pathwise
from rlcm_cli.phases.optimizer import clip_gradient, make_optimizer, optimizer_tensors, rate_of, restore_optimizer
from rlcm_cli.phases.policy import load_checkpoint
from rlcm_cli.phases.pretraining import step_seed
from rlcm_cli.phases.rescore import is_rescored, measure_drift, numerics, rescore_lessons, rescore_stale_lessons
from rlcm_cli.phases.rollout import read_rollout
from rlcm_cli.phases.run import Run
from rlcm_cli.phases.score import Scorer
from rlcm_cli.phases.signal import find_no_signal, starts_to_rest
from rlcm_cli.phases.team import Team
from rlcm_cli.phases.update import Lessons, accumulate_own_step, accumulate_update, prepare_lessons
from rlcm_cli.store.checkpoint import (
    AVERAGE_FOLDER,
    OPTIMIZER_FILE,
    latest_checkpoint,
    publish_checkpoint,
    read_average,
    read_optimizer,
    read_statistics,
)
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.reward_versions import changed_rewards
from rlcm_cli.store.run import publish_metrics, read_last_metrics, read_metrics_row
from rlcm_cli.wording import command, count

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
    times = read_phase_times(layout, rollout.manifest)
    if layout.metrics(iteration + 1).exists():  # before the work: those of another run are not to be replaced
        read_metrics_row(layout, iteration + 1)
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
            f"iteration {iteration + 1}: all images of a prompt have the same reward, for "
            f"{count(len(flat), 'prompt')} (such as '{flat[0]}'): they teach nothing"
        )
    lessons, rate = prepare_lessons(run, model, rollout, advantages, scorers), rate_of(settings, iteration)
    left_out = tell_pathwise(run.config, lessons.pathwise) if lessons.pathwise and iteration == 0 else None
    if left_out:
        yield Warned(left_out)
    trained = TRAINED[settings.parameters]
    parameters = trained.parameters(model)
    optimizer = make_optimizer(parameters, settings, rate)
    continue_optimizer(run, optimizer, parameters, iteration)
    student = Student(model, parameters, optimizer, start_average(run, model, trained, iteration))
    on_policy = not off_policy and run.config.sample.drawing_checkpoint(iteration) == iteration
    no_signal = find_no_signal(rollout, advantages, lessons, run.config)
    if no_signal:
        yield Warned(f"iteration {iteration + 1}: {no_signal}")
    if starts_to_rest(run.config, iteration):
        yield Warned(
            f"iteration {iteration + 1}: the learning rate has decayed to 0 (train.lr_decay_iterations is "
            f"{settings.lr_decay_iterations}), and from here on the policy stays as it is"
        )
    if no_signal or rate == 0:
        measured: dict[str, float] = {"updates": 0, "forwards": drawing_forwards(model, rollout)}
    else:
        measured = yield from _learn(
            run, student, lessons, team, rate=rate, on_policy=on_policy, off_policy=off_policy
        )

    cpu_seconds = sum(part["cpu_seconds"] for part in team.gather({"cpu_seconds": time.process_time() - processor}))
    metrics = {
        "iteration": iteration,
        "checkpoint": iteration + 1,
        **reward_metrics(rollout, run.config),
        "reward_revisions": dict(rollout.revisions),
        **measured,
        "learning_rate": rate,
        "flat_prompts": len(flat),
        "samples": len(advantages),
        "micro_batch_size": run.config.runtime.micro_batch_size,
        "gradient_checkpointing": run.config.runtime.gradient_checkpointing,
        "train_seconds": time.perf_counter() - clock,
        **phase_seconds(times, cpu_seconds, team),
        "finished_at": time.time(),
    }
    if team.leads:
        # Metrics first: a checkpoint says that its iteration is done, and no phase looks back.
        publish_metrics(layout, iteration + 1, metrics)
        publish_checkpoint(
            layout,
            iteration + 1,
            write_weights=lambda folder: write_weights(model, trained, student.average, folder),
            model_digest=model.digest,
            optimizer=optimizer_tensors(optimizer, parameters),
            optimizer_steps=state.optimizer_steps + student.steps,
            statistics=statistics,
        )
    team.wait()
    yield IterationTrained(iteration + 1, metrics)


@dataclass
class Student:
    """What an iteration's optimizer steps change."""

    model: DiffusionModel
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor] | None
    """Moving average of the weights, by name; None: none is kept."""
    steps: int = 0
    """Optimizer steps taken."""

    def step(self, settings: TrainSettings, iteration: int) -> float:
        """Take an optimizer step along the gradient that is there, and return its norm before it was clipped.

        Raises `TrainingError` where it is infinite or NaN.
        """
        norm = clip_gradient(self.parameters.values(), settings)
        if not math.isfinite(norm):
            raise TrainingError(
                f"iteration {iteration + 1}: the gradient is {norm}; use --dtype bfloat16 or float32, or a "
                "smaller train.learning_rate"
            )
        self.optimizer.step()
        self.steps += 1
        if self.average is not None and settings.ema_decay is not None:
            self.average = average_weights(self.average, self.parameters, settings.ema_decay)
        return norm


def _learn(
    run: Run,
    student: Student,
    lessons: Lessons,
    team: Team,
    *,
    rate: float,
    on_policy: bool,
    off_policy: bool,
) -> Generator[Event, None, dict[str, float]]:
    """Take the optimizer steps of an iteration, and return what they measured by the names of metrics.

    Raises `TrainingError` for a ratio that is not 1 before the first of them, a gradient or weights that are not
    finite, and weights that are all as they were.
    """
    model, settings, rollout = student.model, run.config.train, lessons.rollout
    iteration, replay_drift = rollout.manifest.iteration, None
    rescored, rescoring = is_rescored(run.config) and not off_policy, 0
    if rescored:
        anew = (
            rescore_lessons(model, lessons, run.config, team)
            if on_policy
            else rescore_stale_lessons(run, model, lessons, team)
        )
        lessons, replay_drift, rescoring = anew.lessons, anew.drift, anew.passes
    # On the host: of a whole U-Net there may be no room for another one beside it.
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in student.parameters.items()}
    own_steps = run.config.pretraining.own_steps if lessons.pairs is not None else 0
    if own_steps and on_policy and replay_drift is None:
        replay_drift = measure_drift(model, rollout, run.config.runtime.micro_batch_size)

    count = len(rollout.trajectories)
    updates = count // (settings.minibatch_size or count) * settings.inner_epochs
    yield PhaseStarted("train", iteration, own_steps + updates, "updates")
    model.adapter_digest = None  # from the first step on the weights are no file's, also where a later one fails
    own_records: list[UpdateMetrics] = []
    for step in range(own_steps):
        student.optimizer.zero_grad(set_to_none=True)
        seed = step_seed(run.config.seed, iteration, step)
        own_records.append(accumulate_own_step(model, lessons, run.config, seed, team))
        student.step(settings, iteration)
        yield Advanced(1)
    records: list[UpdateMetrics] = []
    for minibatch in draw_minibatches(rollout, settings, run.config.seed, iteration):
        student.optimizer.zero_grad(set_to_none=True)
        seed = step_seed(run.config.seed, iteration, len(records))
        record = accumulate_update(model, lessons, minibatch, run.config, seed, team)
        if not records:
            drift = record.values[LARGEST] if replay_drift is None else replay_drift
        if not records and on_policy:
            check_ratio(drift, numerics(run.config), run.layout.rollout(iteration).name)
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
        record.values["grad_norm"] = student.step(settings, iteration)
        records.append(record)
        yield Advanced(1)
    _check_weights(student, before, iteration, rate)
    return {
        **average(own_records),
        **average(records),
        "ratio_drift": drift,
        "rescored": int(rescored),
        "updates": len(records),
        "forwards": count_forwards(run.config, model, rollout, rescoring=rescoring),
    }


def _check_weights(student: Student, before: Mapping[str, Tensor], iteration: int, rate: float) -> None:
    after = {name: parameter.detach().cpu() for name, parameter in student.parameters.items()}
    broken = [name for name, weights in after.items() if not weights.isfinite().all()]
    if broken:
        raise TrainingError(
            f"iteration {iteration + 1}: the optimizer's steps made {len(broken)} of {len(after)} weights infinite or "
            f"NaN, such as {broken[0]}; nothing was published; use a smaller train.learning_rate (now {rate:.3g})"
        )
    if all(torch.equal(before[name], weights) for name, weights in after.items()):
        raise TrainingError(
            f"iteration {iteration + 1}: {student.steps} optimizer steps changed no weight (rate {rate:.3g}): "
            "the gradient does not reach what is trained, or the rate is too small for the weights' dtype"
        )


def continue_optimizer(
    run: Run, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], iteration: int
) -> None:
    """Give the optimizer the state that a checkpoint has of it. Raises `ForeignFileError` where it does not fit."""
    try:
        restore_optimizer(optimizer, parameters, read_optimizer(run.layout, iteration))
    except ValueError as error:
        path = run.layout.checkpoint(iteration)
        raise ForeignFileError(
            f"{path / OPTIMIZER_FILE}: is no state of this run's optimizer: {error}; {REMEDY.format(path=path)}"
        ) from None


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
    """Average the metrics of an iteration's optimizer steps, which are of as many samples each; of none none."""
    if not records:
        return {}
    return {
        name: sum(record.values[name] for record in records) / len(records)
        for name in records[0].values
        if name != LARGEST
    }
