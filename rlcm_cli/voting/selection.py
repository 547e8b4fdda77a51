"""What people are asked to vote on: a rollout's images, or the held-out images of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.rewards.votes import VOTES
from rlcm_cli.runs.run import Run
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import is_pruned
from rlcm_cli.voting.contests import (
    Contender,
    Contest,
    Gallery,
    contests_of_evaluations,
    contests_of_rollout,
    read_evaluation_images,
    read_rollout_images,
)
from rlcm_cli.wording import command, join_words


@dataclass(frozen=True)
class Selection:
    """Contests, and the images that are in them."""

    what: str
    """What is compared, for who starts the vote; never for a voter."""
    contests: Sequence[Contest]
    gallery: Gallery = field(repr=False)


def list_contenders(runs: Mapping[str, Run]) -> list[Contender]:
    """Return every evaluation of some runs, by the names of the runs, in their order."""
    return [
        Contender(f"checkpoint {number}" + (f" of {name}" if len(runs) > 1 else ""), run.layout, number)
        for name, run in runs.items()
        for number in run.layout.evaluations()
    ]


def select(runs: Mapping[str, Run], rollouts: Sequence[int] = (), checkpoints: Sequence[int] = ()) -> Selection:
    """Choose what is voted on, and read its images.

    By default that is, of several runs, the last evaluation of each; of a run that is trained for votes, its newest
    rollout; of any other, its first evaluation against its last.

    Args:
        runs: By the names that they are shown under.
        rollouts: Iterations, counted from 0 as their folders are; of one run only.
        checkpoints: Whose evaluations are compared, of each run.

    Raises:
        ConfigError: If nothing can be compared, or both kinds are asked for.
        MissingFileError: If something that is asked for is not there.
    """
    if rollouts and (checkpoints or len(runs) > 1):
        raise ConfigError("--rollout compares images of one run, and goes with no --checkpoint and no second run")
    run = next(iter(runs.values()))
    if rollouts:
        return _select_rollouts(run, rollouts)
    contenders = _choose(runs, checkpoints)
    trained = any(VOTES in task.rewards for task in run.config.joint_tasks().values())
    stored = [number for number in run.layout.iterations() if not _is_gone(run, number)]
    if stored and len(runs) == 1 and not checkpoints and (trained or len(contenders) < 2):
        return _select_rollouts(run, stored[-1:])
    if checkpoints and len(contenders) < 2:
        raise ConfigError(f"--checkpoint {checkpoints[0]}: is compared with another; give --checkpoint twice")
    if len(contenders) < 2:
        raise ConfigError(
            f"{run.layout.root}: has nothing to compare: no stored rollout, and not two evaluations; draw some with "
            f"`{command('evaluate', '--run', run.layout.root, '--checkpoint', 0)}`, or name a second run or checkpoint"
        )
    gallery = {record: images for own in contenders for record, images in read_evaluation_images(own).items()}
    names = join_words([contender.name for contender in contenders])
    return Selection(f"held-out images of {names}", contests_of_evaluations(contenders), gallery)


def _choose(runs: Mapping[str, Run], checkpoints: Sequence[int]) -> list[Contender]:
    every = list_contenders(runs)
    if checkpoints:
        several = len(runs) > 1
        return [
            Contender(f"checkpoint {number}" + (f" of {name}" if several else ""), run.layout, number)
            for name, run in runs.items()
            for number in dict.fromkeys(checkpoints)
        ]
    if len(runs) == 1:
        return [every[0], every[-1]] if len(every) > 1 else every
    last = {contender.layout: contender for contender in every}
    without = next((name for name, run in runs.items() if run.layout not in last), None)
    if without is not None:
        raise MissingFileError(
            f"{without}: has no evaluation; draw one with `{command('evaluate', '--run', without)}`"
        )
    return list(last.values())


def _is_gone(run: Run, iteration: int) -> bool:
    return is_pruned(run.layout, read_manifest(run.layout.manifest(iteration)))


def _select_rollouts(run: Run, iterations: Sequence[int]) -> Selection:
    layout = run.layout
    contests: list[Contest] = []
    gallery: dict[str, np.ndarray] = {}
    for iteration in dict.fromkeys(iterations):
        if iteration not in layout.iterations():
            inspect = command("inspect", layout.root)
            raise MissingFileError(f"{layout.rollout(iteration)}: there is no such rollout; `{inspect}` lists them")
        contests += contests_of_rollout(layout, iteration, run.scored_tasks(VOTES))
        gallery |= read_rollout_images(layout, iteration)
    contests = [contest for contest in contests if len(contest.images) > 1]
    if not contests:
        raise ConfigError(
            f"{layout.root}: no prompt of {_name(iterations)} has two images to compare; set sample.group_size to 2 "
            "or more, or compare checkpoints with --checkpoint"
        )
    return Selection(f"images of {_name(iterations)}", contests, gallery)


def _name(iterations: Sequence[int]) -> str:
    return f"rollout {join_words([str(iteration) for iteration in iterations])}"
