"""The fixed images drawn with a checkpoint, as a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rlcm_cli.errors import ForeignFileError
from rlcm_cli.store.identity import check_owner, read_run_identity
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.shards import is_published, publish_record, read_receipt, read_record

if TYPE_CHECKING:
    from torch import Tensor

REWARD = "reward."


@dataclass(frozen=True)
class Evaluation:
    """B images of fixed prompts and seeds, with their rewards."""

    checkpoint: int
    policy_digest: str
    images: Tensor
    """uint8 [B, 3, H, W]."""
    prompts: list[str]
    """Prompt of each image."""
    tasks: list[str]
    """Task of each image."""
    seed: Tensor
    """int64 [B]."""
    held_out: Tensor
    """bool [B]: the prompt was kept out of training."""
    rewards: Mapping[str, Tensor]
    """Name → float32 [B]; NaN where the image's task does not have the reward."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Name → digest of what gave the reward, of those that have one."""


@dataclass(frozen=True)
class EvaluationRewards:
    """What an evaluation's images were given, as plain values, so that a comparison of runs needs no torch."""

    prompts: list[str]
    """Prompt of each image."""
    tasks: list[str]
    """Task of each image."""
    held_out: list[bool]
    """Whether the prompt of each image was kept out of training."""
    rewards: Mapping[str, list[float]]
    """Name → value of each image; NaN if its task does not have the reward."""
    revisions: Mapping[str, str]
    """As those of an `Evaluation`."""


EvaluationT = TypeVar("EvaluationT", Evaluation, EvaluationRewards)


def publish_evaluation(layout: RunLayout, evaluation: Evaluation) -> None:
    """Publish the evaluation of a checkpoint. Raises `MissingFileError` where the run directory is gone."""
    import torch

    prompts, tasks = (list(dict.fromkeys(names)) for names in (evaluation.prompts, evaluation.tasks))
    tensors = {
        "images": evaluation.images,
        "prompt_index": torch.tensor([prompts.index(prompt) for prompt in evaluation.prompts]),
        "task_index": torch.tensor([tasks.index(task) for task in evaluation.tasks]),
        "seed": evaluation.seed,
        "held_out": evaluation.held_out.byte(),
        **{REWARD + name: values for name, values in evaluation.rewards.items()},
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


def read_evaluation(layout: RunLayout, checkpoint: int) -> Evaluation:
    """Read the evaluation of a checkpoint, with the rewards that it was given last.

    Raises the errors of `read_record`, and `ForeignFileError` for that of another run or checkpoint.
    """
    tensors, fields = _read(layout, checkpoint, "pt")
    return Evaluation(
        checkpoint=fields["checkpoint"],
        policy_digest=fields["policy_digest"],
        images=tensors["images"],
        prompts=[fields["prompts"][index] for index in tensors["prompt_index"].tolist()],
        tasks=[fields["tasks"][index] for index in tensors["task_index"].tolist()],
        seed=tensors["seed"],
        held_out=tensors["held_out"].bool(),
        rewards=_rewards(tensors),
        revisions=fields["revisions"],
    )


def read_evaluation_rewards(layout: RunLayout, checkpoint: int) -> EvaluationRewards:
    """Read what the images of an evaluation were given last. Raises as `read_evaluation`."""
    arrays, fields = _read(layout, checkpoint, "np")
    return EvaluationRewards(
        prompts=[fields["prompts"][index] for index in arrays["prompt_index"].tolist()],
        tasks=[fields["tasks"][index] for index in arrays["task_index"].tolist()],
        held_out=[bool(value) for value in arrays["held_out"].tolist()],
        rewards={name: values.tolist() for name, values in _rewards(arrays).items()},
        revisions=fields["revisions"],
    )


def _read(layout: RunLayout, checkpoint: int, framework: Literal["pt", "np"]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read an evaluation's tensors and fields, with the rewards and revisions that it was given last."""
    path = layout.evaluation(checkpoint)
    tensors, fields = read_record(path, "evaluation", framework)
    check_owner(fields["run"], layout, path)
    if fields["checkpoint"] != checkpoint:
        raise ForeignFileError(
            f"{path}: is the evaluation of checkpoint {fields['checkpoint']}; {REMEDY.format(path=path)}"
        )
    revisions = dict(fields["revisions"])
    for number in range(1, _count_rescored(layout, checkpoint) + 1):
        path = layout.rescored_evaluation(checkpoint, number)
        again, about = read_record(path, "rescored", framework)
        of_images = about["evaluation_sha256"] == read_receipt(layout.evaluation(checkpoint)).sha256
        if not of_images or again["seed"].tolist() != tensors["seed"].tolist():
            raise ForeignFileError(
                f"{path}: scores other images than the evaluation next to it; {REMEDY.format(path=path)}"
            )
        tensors |= {name: values for name, values in again.items() if name.startswith(REWARD)}
        revisions |= about["revisions"]
    return tensors, {**fields, "revisions": revisions}


def comparable_evaluations(evaluations: Sequence[EvaluationT]) -> list[EvaluationT]:
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
    layout: RunLayout, evaluation: Evaluation, rewards: Mapping[str, Tensor], revisions: Mapping[str, str]
) -> None:
    """Publish rewards, float32 [B], that later versions of rewards give to the images of an evaluation."""
    checkpoint = evaluation.checkpoint
    publish_record(
        layout.rescored_evaluation(checkpoint, _count_rescored(layout, checkpoint) + 1),
        "rescored",
        {"seed": evaluation.seed, **{REWARD + name: values for name, values in rewards.items()}},
        {
            "checkpoint": checkpoint,
            "evaluation_sha256": read_receipt(layout.evaluation(checkpoint)).sha256,
            "revisions": dict(revisions),
        },
    )


def _rewards(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(REWARD): values for name, values in tensors.items() if name.startswith(REWARD)}


def _count_rescored(layout: RunLayout, checkpoint: int) -> int:
    number = 0
    while is_published(layout.rescored_evaluation(checkpoint, number + 1)):
        number += 1
    return number
