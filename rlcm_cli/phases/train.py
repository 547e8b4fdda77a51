"""Phase 3: update the policy of the newest checkpoint on its stored trajectories.

From a reward to a gradient: this file says in what order an iteration is read, learned from and published; the
objective's own file (`objectives/NAME.py`) has its whole optimizer step; `core/objectives.py` has its mathematics.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlcm_cli.core.advantages import PromptStatistics
from rlcm_cli.core.ema import average_weights
from rlcm_cli.errors import ConfigError, ForeignFileError, MissingFileError
from rlcm_cli.events import Advanced, Event, IterationTrained, PhaseSkipped, PhaseStarted, Warned
from rlcm_cli.learning.advantages import compute_advantages, flat_prompts, forget_rewards, measure_rewards
from rlcm_cli.learning.costs import count_iteration_forwards, drawing_forwards, phase_seconds, read_phase_times
from rlcm_cli.learning.last_step import tell_pathwise
from rlcm_cli.learning.learner import LARGEST, UpdateMetrics, average_metrics, copy_policy
from rlcm_cli.learning.log_probs import (
    check_ratio,
    measure_drift,
    needs_refresh,
    numerics,
    refresh_log_probs,
    refresh_passes,
)
from rlcm_cli.learning.matching import Matching, start_matching
from rlcm_cli.learning.minibatches import draw_minibatches
from rlcm_cli.learning.optimizer import make_optimizer, optimizer_tensors, rate_of, restore_optimizer
from rlcm_cli.learning.pretraining import step_seed
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.learning.signal import find_no_signal, starts_to_rest
from rlcm_cli.learning.student import Student
from rlcm_cli.learning.update import IterationData, accumulate_own_step, accumulate_update, gather_iteration
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.offloading import bring_denoiser
from rlcm_cli.models.weights import clone_weights, exchanged_weights
from rlcm_cli.objectives import Need, find_objective
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.score import Scorer, load_scorers
from rlcm_cli.processes.job import Processes
from rlcm_cli.runs.inputs import check_images, find_pairs
from rlcm_cli.runs.policy import load_checkpoint, load_drawing_policy
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.teacher import check_teacher, find_teacher, open_fake_score, save_fake_score
from rlcm_cli.store.checkpoint import (
    AVERAGE_FOLDER,
    FAKE_FOLDER,
    OLD_FOLDER,
    OPTIMIZER_FILE,
    TrainerState,
    latest_checkpoint,
    publish_checkpoint,
    read_average,
    read_optimizer,
    read_statistics,
)
from rlcm_cli.store.metrics import IterationMetrics, publish_metrics, read_iteration_metrics
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.reward_versions import changed_rewards
from rlcm_cli.wording import command, count


def train(
    run: Run,
    model: LatentModel,
    scorers: Mapping[str, Scorer] | None = None,
    processes: Processes = Processes(),
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
    layout = run.layout
    needs = find_objective(run.config).needs
    if off_policy and Need.OLD_POLICY in needs:
        raise ConfigError(
            f"--off-policy: objective.kind {run.config.objective.kind} compares with the policy that drew, whose "
            "weights may not be here; draw the samples again with `rlcm sample`, or use objective ppo"
        )
    if off_policy and Need.OWN_SAMPLES in needs:
        raise ConfigError(
            f"--off-policy: objective.kind {run.config.objective.kind} corrects for no difference between the "
            "policies; draw the samples again with `rlcm sample`, or use objective ppo"
        )
    iteration = latest_checkpoint(layout)
    if not layout.manifest(iteration).exists():
        if iteration == 0:
            raise MissingFileError(
                f"{layout.root}: holds no rollouts to train on; run `{command('sample', '--run', layout.root)}` first"
            )
        yield PhaseSkipped("train", iteration, "its checkpoint is there and nothing was sampled since")
        return
    clock = StartTimes(time.perf_counter(), time.process_time())
    opened = yield from open_iteration(run, model, scorers, processes, off_policy=off_policy)
    measured = yield from run_updates(run, opened)
    metrics = publish_iteration(run, opened, measured, clock)
    yield IterationTrained(iteration + 1, metrics)


@dataclass(frozen=True)
class StartTimes:
    """When the training of an iteration began."""

    seconds: float
    """Of `time.perf_counter`."""
    processor: float
    """Of `time.process_time`."""


@dataclass
class OpenIteration:
    """An iteration that is trained on: what it was drawn and scored with, and what its optimizer steps change."""

    state: TrainerState
    """Of the checkpoint that is trained."""
    data: IterationData
    advantages: np.ndarray
    """float64 [B]."""
    statistics: Mapping[str, PromptStatistics]
    """Of the rewards of each prompt, this iteration's included."""
    flat_prompts: Sequence[str]
    student: Student
    rate: float
    """Learning rate."""
    off_policy: bool
    """Whether a rollout of any policy is admitted."""
    times: Mapping[str, list[dict[str, float]]]
    """Of `read_phase_times`."""

    @property
    def rollout(self) -> Rollout:
        """The samples."""
        return self.data.learner.rollout

    @property
    def number(self) -> int:
        """The iteration, from 0."""
        return self.state.number


@dataclass(frozen=True)
class UpdatesDone:
    """The optimizer steps of an iteration."""

    updates: int
    forwards: int
    """Model forwards of drawing and training."""
    values: Mapping[str, float] = field(default_factory=dict)
    """What the steps measured, by name; empty where there was none."""


def open_iteration(
    run: Run, model: LatentModel, scorers: Mapping[str, Scorer] | None, processes: Processes, *, off_policy: bool
) -> Generator[Event, None, OpenIteration]:
    """Read the newest checkpoint and its rollout, and make of its rewards what the updates learn from."""
    layout, config = run.layout, run.config
    iteration = latest_checkpoint(layout)
    state = load_checkpoint(run, model, iteration)
    rollout = read_rollout(run, model, state, off_policy=off_policy)
    times = read_phase_times(layout, rollout.manifest)
    if layout.metrics(iteration + 1).exists():  # before the work: those of another run are not to be replaced
        read_iteration_metrics(layout, iteration + 1)
    before = read_iteration_metrics(layout, iteration).reward_revisions if layout.metrics(iteration).exists() else {}
    changed = changed_rewards(before, rollout.revisions)
    if changed:
        yield Warned(
            f"iteration {iteration}: what is behind {', '.join(changed)} has changed; the prompts' statistics of its "
            "rewards begin again"
        )
    known = forget_rewards(read_statistics(layout, iteration), config, changed)
    advantages, statistics = compute_advantages(rollout, config, known)
    flat = flat_prompts(rollout, config)
    if flat:
        yield Warned(
            f"iteration {iteration + 1}: all images of a prompt have the same reward, for "
            f"{count(len(flat), 'prompt')} (such as '{flat[0]}'): they teach nothing"
        )
    data = gather_data(run, model, rollout, advantages, scorers, processes)
    check_teacher(run, state, data.teacher_digest)
    left_out = tell_pathwise(config, data.pathwise) if data.pathwise and iteration == 0 else None
    if left_out:
        yield Warned(left_out)
    bring_denoiser(model)
    rate, parameters = rate_of(config.train, iteration), model.trained.parameters(model)
    optimizer = make_optimizer(parameters, config.train, rate)
    continue_optimizer(run, optimizer, parameters, iteration)
    average, old = start_average(run, model, iteration), start_old(run, model, iteration)
    student = Student(model, parameters, optimizer, average, old)
    return OpenIteration(state, data, advantages, statistics, flat, student, rate, off_policy, times)


def gather_data(
    run: Run,
    model: LatentModel,
    rollout: Rollout,
    advantages: np.ndarray,
    scorers: Mapping[str, Scorer] | None,
    processes: Processes = Processes(),
) -> IterationData:
    """Gather what a run's iteration learns from; `scorers` are loaded where they are needed and none are given."""
    rewards = {}
    if run.config.last_step.mode == "backprop":
        loaded = load_scorers(run) if scorers is None else scorers
        rewards = {name: scorer.reward for name, scorer in loaded.items()}
    check_images(run.layout, run.config)
    pairs, teacher = find_pairs(run.config, model), find_teacher(run.config, model, run.all_prompts())
    data = gather_iteration(
        model, rollout, advantages, run.config, processes, rewards=rewards, pairs=pairs, teacher=teacher
    )
    if teacher is None or not run.config.matching.weight:
        return data
    fake = open_fake_score(run, teacher, rollout.manifest.iteration)
    return dataclasses.replace(data, matching=start_matching(run.config, rollout, fake))


def run_updates(run: Run, opened: OpenIteration) -> Generator[Event, None, UpdatesDone]:
    """Take the optimizer steps of an iteration that has something to teach; return what they measured."""
    config, iteration = run.config, opened.number
    no_signal = find_no_signal(opened.data, opened.advantages)
    if no_signal:
        yield Warned(f"iteration {iteration + 1}: {no_signal}")
    if starts_to_rest(config, iteration):
        yield Warned(
            f"iteration {iteration + 1}: the learning rate has decayed to 0 (train.lr_decay_iterations is "
            f"{config.train.lr_decay_iterations}), and from here on the policy stays as it is"
        )
    if no_signal or opened.rate == 0:
        return UpdatesDone(0, drawing_forwards(opened.data.learner.model, opened.rollout))
    return (yield from _learn(run, opened))


def _learn(run: Run, opened: OpenIteration) -> Generator[Event, None, UpdatesDone]:
    """Take the optimizer steps of an iteration, and return what they measured.

    Raises `TrainingError` for a ratio that is not 1 before the first of them, a gradient or weights that are not
    finite, and weights that are all as they were.
    """
    student, settings, iteration = opened.student, run.config.train, opened.number
    on_policy = not opened.off_policy and opened.rollout.manifest.policy.digest == opened.state.policy_digest
    refreshed = refresh_data(run, opened.data, on_policy=on_policy, off_policy=opened.off_policy)
    data, replay_drift = keep_old_policy(run, refreshed.data, on_policy=on_policy), refreshed.drift
    # On the host: of a whole denoiser there may be no room for a second one next to it.
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in student.parameters.items()}
    own_steps = run.config.pretraining.own_steps if data.pairs is not None else 0
    if own_steps and on_policy and replay_drift is None:
        replay_drift = measure_drift(student.model, opened.rollout, run.config.runtime.micro_batch_size)

    samples = len(opened.rollout.trajectories)
    updates = samples // (settings.minibatch_size or samples) * settings.inner_epochs
    yield PhaseStarted("train", iteration, own_steps + updates, "updates")
    student.model.adapter_digest = None  # from the first step on the weights are no file's, also where one fails
    own_records: list[UpdateMetrics] = []
    for step in range(own_steps):
        student.optimizer.zero_grad(set_to_none=True)
        own_records.append(accumulate_own_step(data, step_seed(run.config.seed, iteration, step)))
        student.step(settings, iteration)
        yield Advanced(1)
    records: list[UpdateMetrics] = []
    drift = replay_drift
    for minibatch in draw_minibatches(opened.rollout, run.config, iteration):
        student.optimizer.zero_grad(set_to_none=True)
        record = accumulate_update(data, minibatch, step_seed(run.config.seed, iteration, len(records)))
        if not records:
            drift = record.values.get(LARGEST) if replay_drift is None else replay_drift
            if on_policy and drift is not None:
                check_ratio(drift, numerics(run.config), run.layout.rollout(iteration).name)
                yield from _warn_of_rounding(run, iteration, drift, refreshed=refreshed.done)
        record.values["grad_norm"] = student.step(settings, iteration)
        records.append(record)
        yield Advanced(1)
    student.check_weights(before, iteration, opened.rate)
    forwards = count_iteration_forwards(run.config, student.model, opened.rollout, refreshes=refreshed.passes)
    values = {**average_metrics(own_records), **average_metrics(records), "refreshed": float(refreshed.done)}
    return UpdatesDone(len(records), forwards, values if drift is None else {**values, LARGEST: drift})


def _warn_of_rounding(run: Run, iteration: int, drift: float, *, refreshed: bool) -> Iterator[Warned]:
    clip_range = find_objective(run.config).clip_range(run.config.objective)
    if iteration or clip_range is None or drift <= clip_range / 10:
        return
    yield Warned(
        f"rounding in {numerics(run.config)} moves the probability ratio by {drift:.1e}, not small compared with "
        f"objective.clip_range {clip_range:.0e}: "
        + (
            "old log-probabilities are taken from training itself, so that it clips nothing at random"
            if refreshed
            else "it clips updates at random; --dtype float32 learns better"
        )
    )


@dataclass(frozen=True)
class Refreshed:
    """What an iteration learns from, with old log-probabilities that training took itself where it must."""

    data: IterationData
    done: bool = False
    """Whether it must."""
    drift: float | None = None
    """The largest |ratio − 1| of replaying to drawing; None: the first update measures it."""
    passes: int = 0
    """Forward passes over all transitions that it took."""


def refresh_data(run: Run, data: IterationData, *, on_policy: bool, off_policy: bool) -> Refreshed:
    """Take the old log-probabilities from the policy that drew, with the numerics of training, where it must be.

    Of an on-policy iteration they are those of the model as it is now, before its first update: where there is but
    one update, its own forward pass gives them; otherwise a pass over all transitions comes first.
    """
    if off_policy or not needs_refresh(run.config):
        return Refreshed(data)
    if not on_policy:
        return Refreshed(refresh_stale(run, data), done=True, passes=1)
    learner = data.learner
    if not refresh_passes(run.config):
        old_is_present = dataclasses.replace(learner, old_is_present=True)
        return Refreshed(dataclasses.replace(data, learner=old_is_present), done=True)
    size = run.config.runtime.micro_batch_size
    rollout, drift = refresh_log_probs(learner.model, learner.rollout, size, learner.processes)
    return Refreshed(_with_rollout(data, rollout), done=True, drift=drift, passes=1)


def refresh_stale(run: Run, data: IterationData) -> IterationData:
    """Take the old log-probabilities of an iteration from the policy that drew it.

    The model ends with the weights of the checkpoint that is trained. Raises `MissingFileError` and what
    `load_checkpoint` raises.
    """
    learner = data.learner
    iteration = learner.rollout.manifest.iteration
    load_drawing_policy(run, learner.model, run.config.sample.drawing_checkpoint(iteration))
    # How far replaying is from drawing says nothing of how far the policies are from each other.
    size = run.config.runtime.micro_batch_size
    rollout, _ = refresh_log_probs(learner.model, learner.rollout, size, learner.processes)
    load_checkpoint(run, learner.model, iteration)
    return _with_rollout(data, rollout)


def keep_old_policy(run: Run, data: IterationData, *, on_policy: bool) -> IterationData:
    """Keep the weights that drew an iteration, where the objective asks for their predictions.

    The model ends with the weights of the checkpoint that is trained. Raises what `load_checkpoint` raises.
    """
    learner = data.learner
    if Need.OLD_POLICY not in data.objective.needs:
        return data
    iteration = learner.rollout.manifest.iteration
    if not on_policy:
        load_drawing_policy(run, learner.model, run.config.sample.drawing_checkpoint(iteration))
    old_weights = copy_policy(learner.model, run.config)
    if not on_policy:
        load_checkpoint(run, learner.model, iteration)
    return dataclasses.replace(data, learner=dataclasses.replace(learner, old_weights=old_weights))


def _with_rollout(data: IterationData, rollout: Rollout) -> IterationData:
    return dataclasses.replace(data, learner=dataclasses.replace(data.learner, rollout=rollout))


def publish_iteration(run: Run, opened: OpenIteration, measured: UpdatesDone, clock: StartTimes) -> IterationMetrics:
    """Publish the metrics and the checkpoint of an iteration, and return the metrics."""
    processes, student, checkpoint = opened.data.learner.processes, opened.student, opened.number + 1
    spent = {"cpu_seconds": time.process_time() - clock.processor}
    cpu_seconds = sum(part["cpu_seconds"] for part in processes.gather(spent))
    spent_in = phase_seconds(opened.times, cpu_seconds, processes)
    steps = opened.state.optimizer_steps + student.steps
    averages = {AVERAGE_FOLDER: student.average, OLD_FOLDER: move_old(run, student, steps)}
    metrics = IterationMetrics(
        iteration=opened.number,
        checkpoint=checkpoint,
        **dataclasses.asdict(measure_rewards(opened.rollout, run.config)),
        reward_revisions=dict(opened.rollout.revisions),
        samples=len(opened.advantages),
        updates=measured.updates,
        forwards=measured.forwards,
        learning_rate=opened.rate,
        flat_prompts=len(opened.flat_prompts),
        micro_batch_size=run.config.runtime.micro_batch_size,
        gradient_checkpointing=run.config.runtime.gradient_checkpointing,
        train_seconds=time.perf_counter() - clock.seconds,
        sample_seconds=spent_in.get("sample_seconds"),
        score_seconds=spent_in.get("score_seconds"),
        cpu_seconds=spent_in.get("cpu_seconds"),
        finished_at=time.time(),
    ).with_measured(measured.values)
    if processes.leads:
        # Metrics first: a checkpoint says that its iteration is done, and no phase looks back.
        publish_metrics(run.layout, metrics)
        publish_checkpoint(
            run.layout,
            checkpoint,
            write_weights=lambda folder: write_weights(student.model, averages, folder, opened.data.matching),
            model_digest=student.model.digest,
            optimizer=optimizer_tensors(student.optimizer, student.parameters),
            optimizer_steps=steps,
            statistics=opened.statistics,
            teacher_digest=opened.data.teacher_digest,
        )
    processes.wait()
    return metrics


def continue_optimizer(
    run: Run, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], iteration: int
) -> None:
    """Restore the optimizer state of a checkpoint. Raises `ForeignFileError` where it does not fit."""
    try:
        restore_optimizer(optimizer, parameters, read_optimizer(run.layout, iteration))
    except ValueError as error:
        path = run.layout.checkpoint(iteration)
        raise ForeignFileError(
            f"{path / OPTIMIZER_FILE}: is not a state of this run's optimizer: {error}; {REMEDY.format(path=path)}"
        ) from None


def start_average(run: Run, model: LatentModel, iteration: int) -> Mapping[str, Tensor] | None:
    """Return the moving average of the weights, by name, that training resumes with; None: none is kept.

    The model holds the weights of the checkpoint, which are the average's own start where it has none.
    """
    if run.config.train.ema_decay is None:
        return None
    kept = read_average(run.layout, iteration)
    if kept is not None:
        return model.trained.bind(model, kept)
    return clone_weights(model.trained.parameters(model))


def start_old(run: Run, model: LatentModel, iteration: int) -> Mapping[str, Tensor] | None:
    """Return the weights that draw with a checkpoint, by name, on the CPU; None: always the trained ones.

    The model holds the weights of the checkpoint, which draw where it has no others.
    """
    if find_objective(run.config).old_share is None:
        return None
    kept = read_average(run.layout, iteration, OLD_FOLDER)
    if kept is not None:
        return model.trained.bind(model, kept)
    parameters = model.trained.parameters(model)
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}


def move_old(run: Run, student: Student, steps: int) -> Mapping[str, Tensor] | None:
    """Return the weights that will draw after `steps` optimizer steps of the run; None: the trained ones.

    Without a step in this iteration they stay as they are.
    """
    share_of = find_objective(run.config).old_share
    if share_of is None or student.old is None:
        return None
    share = share_of(run.config.objective, steps) if student.steps else 1.0
    return average_weights(student.old, student.parameters, share) if share else None


def write_weights(
    model: LatentModel,
    averages: Mapping[str, Mapping[str, Tensor] | None],
    folder: Path,
    matching: Matching | None = None,
) -> None:
    """Write a checkpoint's weights and, where some are kept, averages of them: folder → weights by name."""
    model.trained.save(model, folder)
    if matching is not None:
        save_fake_score(matching.fake, folder / FAKE_FOLDER)
    for name, average in averages.items():
        if average is not None:
            with exchanged_weights(model.trained.parameters(model), average):
                model.trained.save(model, folder / name)
