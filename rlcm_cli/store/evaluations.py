"""The fixed images drawn with a checkpoint, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.shards import publish_record, read_record

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


def publish_evaluation(layout: RunLayout, evaluation: Evaluation) -> None:
    """Publish the evaluation of a checkpoint."""
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
        "checkpoint": evaluation.checkpoint,
        "policy_digest": evaluation.policy_digest,
        "prompts": prompts,
        "tasks": tasks,
    }
    publish_record(layout.evaluation(evaluation.checkpoint), "evaluation", tensors, fields)


def read_evaluation(layout: RunLayout, checkpoint: int) -> Evaluation:
    """Read the evaluation of a checkpoint. Raises the errors of `read_record`."""
    tensors, fields = read_record(layout.evaluation(checkpoint), "evaluation")
    return Evaluation(
        checkpoint=fields["checkpoint"],
        policy_digest=fields["policy_digest"],
        images=tensors["images"],
        prompts=[fields["prompts"][index] for index in tensors["prompt_index"].tolist()],
        tasks=[fields["tasks"][index] for index in tensors["task_index"].tolist()],
        seed=tensors["seed"],
        held_out=tensors["held_out"].bool(),
        rewards={n.removeprefix(REWARD): t for n, t in tensors.items() if n.startswith(REWARD)},
    )
