"""Draw the same held-out seeds with a checkpoint, on training prompts and on prompts kept out of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.noise import derive_seed
from rlcm_cli.errors import ForeignFileError
from rlcm_cli.events import Advanced, Evaluated, Event, PhaseStarted
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.sample import REDUCTION, draw_batch
from rlcm_cli.phases.score import Scorer
from rlcm_cli.processes.job import Processes
from rlcm_cli.prompts import draw_prompts
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.runs.held_out import estimate_images, has_deviations, read_weights, rows_of_task, sum_by_task
from rlcm_cli.runs.inputs import TaskPrompts
from rlcm_cli.runs.policy import load_checkpoint
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.store.checkpoint import TrainerState, read_trainer_state
from rlcm_cli.store.evaluations import Evaluation, publish_evaluation, publish_rescored, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.score_cache import digest_images
from rlcm_cli.store.shards import is_published


def evaluate(
    run: Run,
    model: LatentModel,
    scorers: Mapping[str, Scorer],
    checkpoint: int,
    processes: Processes = Processes(),
) -> Iterator[Event]:
    """Draw and score the fixed images with a checkpoint, unless that was done.

    Of several processes, each draws a part of the batches, and the leader scores and publishes. Raises
    `ForeignFileError` where the evaluation that is there is of another policy.
    """
    layout, config = run.layout, run.config
    state = load_checkpoint(run, model, checkpoint)
    if not is_published(layout.evaluation(checkpoint)):
        plan = plan_evaluation(config, run.prompts)
        total = len(plan)
        yield PhaseStarted("evaluate", checkpoint, total, "images")
        schedule = drawing_schedule(config.sampler, config.sample.steps, model)
        pictures = torch.zeros(total, 3, *model.image_size, dtype=torch.uint8)
        model.read_prompts([fixed.prompt for fixed in plan])
        batches = range(0, total, config.sample.batch_size)
        for batch in processes.part(len(batches)):
            part = plan[batches[batch] : batches[batch] + config.sample.batch_size]
            drawn = draw_batch(
                model,
                schedule,
                [fixed.prompt for fixed in part],
                [fixed.seed for fixed in part],
                guidance_scale=config.sample.guidance_scale,
                reduction=REDUCTION,
            )
            pictures[batches[batch] : batches[batch] + len(part)] = drawn.images
            yield Advanced(len(part))
        processes.sum(pictures)  # each image is another's zeros
        if processes.leads:
            publish_evaluation(
                layout,
                Evaluation(
                    checkpoint=checkpoint,
                    policy_digest=state.policy_digest,
                    images=pictures.numpy(),
                    prompts=[fixed.prompt for fixed in plan],
                    tasks=[fixed.task for fixed in plan],
                    seed=np.array([fixed.seed for fixed in plan], dtype=np.int64),
                    held_out=np.array([fixed.held_out for fixed in plan]),
                    rewards={
                        name: score_fixed(scorer, plan, pictures, checkpoint, model.device).numpy()
                        for name, scorer in scorers.items()
                        if not scorer.reward.by_people  # who may vote on these images later
                    },
                    revisions=_revisions(run, scorers),
                ),
            )
        processes.wait()
    if processes.leads:
        for scorer in scorers.values():
            scorer.claim(layout)
        rescore_evaluations(run, scorers, model.device)
    processes.wait()
    evaluation = read_evaluation(layout, checkpoint, images=False)
    _check_policy(layout, evaluation, state)
    yield average_evaluation(evaluation, config, read_weights(layout, config, checkpoint))


def _check_policy(layout: RunLayout, evaluation: Evaluation, state: TrainerState) -> None:
    if evaluation.policy_digest != state.policy_digest:
        path = layout.evaluation(evaluation.checkpoint)
        raise ForeignFileError(f"{path}: was drawn with another policy; {REMEDY.format(path=path)}")


def rescore_evaluations(run: Run, scorers: Mapping[str, Scorer], device: torch.device) -> None:
    """Score the images of every evaluation again whose rewards are of another version than is loaded now.

    The images stay, and so do the old rewards, in their file: evaluations are compared by one version only.
    """
    layout = run.layout
    changed = {name: scorer for name, scorer in scorers.items() if scorer.has_changed(layout)}
    for checkpoint in layout.evaluations() if changed else ():
        found = read_evaluation(layout, checkpoint, images=False)
        _score_again(run, {name: changed[name] for name in changed if name in found.rewards}, checkpoint, device)


def score_evaluations(
    run: Run, scorers: Mapping[str, Scorer], checkpoints: Sequence[int], device: torch.device = torch.device("cpu")
) -> Iterator[Event]:
    """Give the stored images of evaluations the rewards that they lack, without a model.

    Other evaluations that have such a reward of another version are scored again as well, since evaluations are
    compared by one version only. What is there stays.

    Args:
        run: The run; `monitor.rewards` of its configuration holds what is not trained for.
        scorers: The rewards, by name.
        checkpoints: Whose evaluations, each of which must be there.
        device: Of rewards that run a network.
    """
    layout = run.layout
    scorers = {name: scorer for name, scorer in scorers.items() if not scorer.reward.by_people}
    for scorer in scorers.values():
        scorer.claim(layout)
    stale = {}
    for checkpoint in layout.evaluations():
        found = read_evaluation(layout, checkpoint, images=False)
        if checkpoint in checkpoints and checkpoint in layout.checkpoints():  # else it was pruned
            _check_policy(layout, found, read_trainer_state(layout, checkpoint))
        present = scorers if checkpoint in checkpoints else [name for name in scorers if name in found.rewards]
        names = [name for name in present if not _is_current(run, found, scorers[name])]
        if names:
            stale[checkpoint] = names
    for checkpoint, names in stale.items():
        total = len(read_evaluation(layout, checkpoint, images=False).prompts)
        yield PhaseStarted("score", checkpoint, total * len(names), "images")
        for name in names:
            _score_again(run, {name: scorers[name]}, checkpoint, device)
            yield Advanced(total)
    for checkpoint in checkpoints:
        found = read_evaluation(layout, checkpoint, images=False)
        yield average_evaluation(found, run.config, read_weights(layout, run.config, checkpoint))


def _score_again(run: Run, scorers: Mapping[str, Scorer], checkpoint: int, device: torch.device) -> None:
    """Publish the rewards of an evaluation's images that it lacks, or has of another version."""
    found = read_evaluation(run.layout, checkpoint)
    stale = {name: scorer for name, scorer in scorers.items() if not _is_current(run, found, scorer)}
    if stale:
        plan, images = plan_evaluation(run.config, run.prompts), torch.from_numpy(found.images)
        rewards = {
            name: score_fixed(scorer, plan, images, checkpoint, device).numpy() for name, scorer in stale.items()
        }
        publish_rescored(run.layout, found, rewards, _revisions(run, stale))


def _is_current(run: Run, found: Evaluation, scorer: Scorer) -> bool:
    name = scorer.spec.name
    return name in found.rewards and found.revisions.get(name, "") == _revise(run, scorer)


def _revise(run: Run, scorer: Scorer) -> str:
    """Return what tells the values of a reward from others: its revision and, where those may change, its settings."""
    spec, revision = scorer.spec, scorer.reward.revision
    trained = any(spec.name in task.rewards for task in run.config.joint_tasks().values())
    if trained or not spec.settings or spec.digest == RewardSpec(spec.name).digest:
        return revision
    return f"{revision}-{spec.digest}" if revision else spec.digest


def _revisions(run: Run, scorers: Mapping[str, Scorer]) -> dict[str, str]:
    return {name: revision for name, scorer in scorers.items() if (revision := _revise(run, scorer))}


@dataclass(frozen=True)
class PlannedImage:
    """What one image of every evaluation is drawn from."""

    task: str
    prompt: str
    seed: int
    group: int
    """Number of the prompt's images."""
    held_out: bool
    """The prompt is kept out of training."""


def plan_evaluation(config: Config, prompts: Mapping[str, TaskPrompts]) -> list[PlannedImage]:
    """List the fixed images, each task by itself, in equal parts.

    Held-out prompts come first and take at most a third of the places; training prompts fill the others.
    """
    settings, tasks = config.evaluate, config.joint_tasks()
    places = max(1, settings.prompts // len(tasks))
    chosen = []
    for task in tasks:
        training = prompts[task].training
        shuffled = draw_prompts(training, config.seed, 0, len(training))
        candidates = [(prompt, True) for prompt in prompts[task].held_out[: places // 3]] + [
            (prompt, False) for prompt in shuffled
        ]
        chosen += [(task, prompt, is_held_out) for prompt, is_held_out in candidates[:places]]
    return [
        PlannedImage(task, prompt, derive_seed(config.seed, "eval", number, member), number, is_held_out)
        for number, (task, prompt, is_held_out) in enumerate(chosen)
        for member in range(settings.images_per_prompt)
    ]


def score_fixed(
    scorer: Scorer, plan: Sequence[PlannedImage], images: Tensor, checkpoint: int, device: torch.device
) -> Tensor:
    """Score the images of the scorer's tasks, float32 [B]; the others get NaN."""
    rows = [row for row, fixed in enumerate(plan) if fixed.task in scorer.tasks]
    values = torch.full((len(plan),), torch.nan)
    metadata = [
        {"evaluation": checkpoint, "sample": row, "seed": plan[row].seed, "group": plan[row].group} for row in rows
    ]
    pictures, prompts = images[rows], [plan[row].prompt for row in rows]
    values[rows] = scorer.score(pictures, prompts, metadata, digest_images(pictures), device)
    return values


def average_evaluation(
    evaluation: Evaluation, config: Config, weights: Mapping[str, Mapping[str, float]]
) -> Evaluated:
    """Average the rewards of an evaluation over its training and its held-out prompts, as `estimate_images` does.

    `weights` are those of `weigh_rewards`. Images that people have not voted on do not count.
    """
    total, held_out = sum_by_task(evaluation, weights), evaluation.held_out
    # An evaluation may be older than what is monitored today.
    present = [name for name in config.reward_names() if name in evaluation.rewards]
    components = {name: _mean(evaluation, evaluation.rewards[name]) for name in present}
    of_task = {task: _mean(evaluation, total, rows_of_task(evaluation, task)) for task in weights}
    return Evaluated(
        checkpoint=evaluation.checkpoint,
        reward_training=_mean(evaluation, total, ~held_out),
        reward_held_out=_mean(evaluation, total, held_out),
        components={name: mean for name, mean in components.items() if mean is not None},
        tasks={task: mean for task, mean in of_task.items() if mean is not None},
        in_deviations=any(has_deviations(config).values()),
    )


def _mean(evaluation: Evaluation, values: np.ndarray, chosen: np.ndarray | None = None) -> float | None:
    """Return the mean over prompts of the values that are known; None: none is."""
    found = estimate_images(evaluation, values, chosen)
    return None if found is None else found.mean
