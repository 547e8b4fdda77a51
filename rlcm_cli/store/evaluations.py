"""The fixed images drawn with a checkpoint, as a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlcm_cli.errors import ForeignFileError
from rlcm_cli.store.identity import check_owner, read_run_identity
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.shards import is_published, publish_record, read_arrays, read_receipt

REWARD = "reward."


@dataclass(frozen=True)
class Evaluation:
    """B images of fixed prompts and seeds, with their rewards."""

    checkpoint: int
    policy_digest: str
    images: np.ndarray
    """uint8 [B, 3, H, W]; [0] where only the rewards were read."""
    prompts: list[str]
    """Prompt of each image."""
    tasks: list[str]
    """Task of each image."""
    seed: np.ndarray
    """int64 [B]."""
    held_out: np.ndarray
    """bool [B]: the prompt was kept out of training."""
    rewards: Mapping[str, np.ndarray]
    """Name → float32 [B]; NaN where the image's task does not have the reward."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Name → digest of what gave the reward, of those that have one."""


def publish_evaluation(layout: RunLayout, evaluation: Evaluation) -> None:
    """Publish the evaluation of a checkpoint. Raises `MissingFileError` where the run directory is gone."""
    import torch

    prompts, tasks = (list(dict.fromkeys(names)) for names in (evaluation.prompts, evaluation.tasks))
    tensors = {
        "images": torch.from_numpy(evaluation.images),
        "prompt_index": torch.tensor([prompts.index(prompt) for prompt in evaluation.prompts]),
        "task_index": torch.tensor([tasks.index(task) for task in evaluation.tasks]),
        "seed": torch.from_numpy(evaluation.seed),
        "held_out": torch.from_numpy(evaluation.held_out).byte(),
        **{REWARD + name: torch.from_numpy(values) for name, values in evaluation.rewards.items()},
    }
    fields = {
        "run": read_run_identity(layout),
        "checkpoint": evaluation.checkpoint,
        "policy_digest": evaluation.policy_digest,
        "prompts": prompts,
        "tasks": tasks,
        "revisions": dict(evaluation.revisions),
    }
    publish_record(layout.evaluation(evaluation.checkpoint), "evaluation", tensors, fields)


def read_evaluation(layout: RunLayout, checkpoint: int, *, images: bool = True) -> Evaluation:
    """Read the evaluation of a checkpoint, with the rewards that it was given last.

    `images`: whether its images are needed, which are most of its bytes; they are checked in any case. Raises the
    errors of `read_arrays`, and `ForeignFileError` for that of another run or checkpoint.
    """
    path = layout.evaluation(checkpoint)
    arrays, fields = read_arrays(path, "evaluation", left_out=() if images else ("images",))
    check_owner(fields["run"], layout, path)
    if fields["checkpoint"] != checkpoint:
        raise ForeignFileError(
            f"{path}: is the evaluation of checkpoint {fields['checkpoint']}; {REMEDY.format(path=path)}"
        )
    rewards, revisions = _rewards(arrays), dict(fields["revisions"])
    for number in range(1, _count_rescored(layout, checkpoint) + 1):
        path = layout.rescored_evaluation(checkpoint, number)
        again, about = read_arrays(path, "rescored")
        of_images = about["evaluation_sha256"] == read_receipt(layout.evaluation(checkpoint)).sha256
        if not of_images or again["seed"].tolist() != arrays["seed"].tolist():
            raise ForeignFileError(
                f"{path}: scores other images than the evaluation next to it; {REMEDY.format(path=path)}"
            )
        rewards |= _rewards(again)
        revisions |= about["revisions"]
    return Evaluation(
        checkpoint=fields["checkpoint"],
        policy_digest=fields["policy_digest"],
        images=arrays.get("images", np.zeros(0, np.uint8)),
        prompts=[fields["prompts"][index] for index in arrays["prompt_index"].tolist()],
        tasks=[fields["tasks"][index] for index in arrays["task_index"].tolist()],
        seed=arrays["seed"],
        held_out=arrays["held_out"].astype(bool),
        rewards=rewards,
        revisions=revisions,
    )


def comparable_evaluations(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return those whose rewards were given by what gave the last one's: others are numbers of other rewards."""
    if not evaluations:
        return []
    last = evaluations[-1].revisions
    return [
        evaluation
        for evaluation in evaluations
        if all(last.get(name, revision) == revision for name, revision in evaluation.revisions.items())
    ]


def publish_rescored(
    layout: RunLayout, evaluation: Evaluation, rewards: Mapping[str, np.ndarray], revisions: Mapping[str, str]
) -> None:
    """Publish rewards, float32 [B], that later versions of rewards give to the images of an evaluation."""
    import torch

    checkpoint = evaluation.checkpoint
    publish_record(
        layout.rescored_evaluation(checkpoint, _count_rescored(layout, checkpoint) + 1),
        "rescored",
        {
            "seed": torch.from_numpy(evaluation.seed),
            **{REWARD + name: torch.from_numpy(values) for name, values in rewards.items()},
        },
        {
            "checkpoint": checkpoint,
            "evaluation_sha256": read_receipt(layout.evaluation(checkpoint)).sha256,
            "revisions": dict(revisions),
        },
    )


def _rewards(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(REWARD): values for name, values in arrays.items() if name.startswith(REWARD)}


def _count_rescored(layout: RunLayout, checkpoint: int) -> int:
    number = 0
    while is_published(layout.rescored_evaluation(checkpoint, number + 1)):
        number += 1
    return number
