"""Rollout shards and their rewards as records: what is joined by sample, and bound to its plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcm_cli.errors import ForeignFileError, MissingFileError, RewardError
from rlcm_cli.store.identity import read_run_identity
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.reward_versions import newest_scores, split_scores_folder
from rlcm_cli.store.shards import check_record, is_published, publish_record, read_arrays, read_receipt, read_record
from rlcm_cli.wording import command

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.trajectory import Trajectories

FINAL_LATENTS = "final_latents"
CONDITIONING = "conditioning."
CONDITIONING_INDEX = "conditioning_index."


@dataclass(frozen=True)
class RolloutShard:
    """The samples of one unit of work: B samples, U unique prompts."""

    trajectories: Trajectories
    images: Tensor
    """uint8 [B, 3, H, W], RGB."""
    sample_index: Tensor
    """int64 [B]."""
    seed: Tensor
    """int64 [B]."""
    prompts: tuple[str, ...]
    """The U unique prompts."""
    prompt_index: Tensor
    """int64 [B], into `prompts`."""
    conditioning: Mapping[str, Tensor]
    """Name → [U, …], row u belongs to prompt u."""
    final_latents: Tensor | None = None
    """What the last model call gave, [B, C, h, w], where the plan says so."""

    def sample_prompts(self) -> list[str]:
        """Prompt of each sample."""
        return [self.prompts[index] for index in self.prompt_index.tolist()]


def publish_shard(layout: RunLayout, manifest: RolloutManifest, number: int, shard: RolloutShard) -> None:
    """Publish a shard of a plan. Raises `MissingFileError` where the run directory is gone."""
    import torch

    read_run_identity(layout)
    trajectories = shard.trajectories
    tensors = {
        "latents": trajectories.latents_BSCHW,
        "log_probs": trajectories.log_probs_BA,
        "timesteps": trajectories.timesteps_A2,
        "images": shard.images,
        "sample_index": shard.sample_index,
        "group_id": shard.sample_index // manifest.group_size,
        "member": shard.sample_index % manifest.group_size,
        "seed": shard.seed,
        "prompt_index": shard.prompt_index,
        "task_index": torch.tensor([manifest.task_of(sample) for sample in shard.sample_index.tolist()]),
    }
    if shard.final_latents is not None:
        tensors[FINAL_LATENTS] = shard.final_latents
    for name, tensor in shard.conditioning.items():
        tensors[CONDITIONING + name] = tensor
        tensors[CONDITIONING_INDEX + name] = shard.prompt_index.clone()
    fields = {"plan": manifest.digest, "prompts": list(shard.prompts), "tasks": list(manifest.tasks)}
    publish_record(layout.shard(manifest.iteration, number, len(manifest.shards)), "rollout", tensors, fields)


def read_shard(layout: RunLayout, manifest: RolloutManifest, number: int) -> RolloutShard:
    """Read a shard of a plan.

    Raises the errors of `read_record`, and `ForeignFileError` for a shard of another plan or another place in it.
    """
    import torch

    from rlcm_cli.core.trajectory import Trajectories

    path = layout.shard(manifest.iteration, number, len(manifest.shards))
    tensors, fields = read_record(path, "rollout")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    _check_trajectories(tensors, shapes, fields, manifest, number, path)
    return RolloutShard(
        Trajectories(
            tensors["latents"],
            tensors["log_probs"],
            tensors["timesteps"],
            torch.tensor(manifest.schedule.action_calls, dtype=torch.int64),
        ),
        tensors["images"],
        tensors["sample_index"],
        tensors["seed"],
        tuple(fields["prompts"]),
        tensors["prompt_index"],
        {name.removeprefix(CONDITIONING): tensors[name] for name in tensors if name.startswith(CONDITIONING)},
        tensors.get(FINAL_LATENTS),
    )


def check_shard(layout: RunLayout, manifest: RolloutManifest, number: int) -> None:
    """Check a shard of a plan, without torch. Raises as `read_shard`."""
    path = layout.shard(manifest.iteration, number, len(manifest.shards))
    arrays, fields, infos = check_record(path, "rollout", ("timesteps",))
    shapes = {name: info.shape for name, info in infos.items()}
    _check_trajectories(arrays, shapes, fields, manifest, number, path)


def _check_trajectories(
    tensors: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    fields: Mapping[str, Any],
    manifest: RolloutManifest,
    number: int,
    path: Path,
) -> None:
    """Raise `ForeignFileError` unless a shard, by its indices, timesteps and all its shapes, is one of its plan."""
    check_samples(tensors, fields, manifest, number, path)
    if tensors["timesteps"].tolist() != manifest.schedule.transitions:
        raise ForeignFileError(
            f"{path}: has other prompts, tasks or timesteps than its plan; {REMEDY.format(path=path)}"
        )
    if shapes["latents"][1] != manifest.schedule.states:
        raise ForeignFileError(
            f"{path}: has {shapes['latents'][1]} states a sample, and its plan {manifest.schedule.states}; "
            + REMEDY.format(path=path)
        )
    if (FINAL_LATENTS in shapes) != manifest.final_latents:
        fault = (
            "lacks the final latents that its plan asks for"
            if manifest.final_latents
            else "holds final latents, and its plan asks for none"
        )
        raise ForeignFileError(f"{path}: {fault}; {REMEDY.format(path=path)}")


@dataclass(frozen=True)
class ShardImages:
    """The images of a shard of B samples."""

    images: np.ndarray
    """uint8 [B, 3, H, W], RGB."""
    seed: np.ndarray
    """int64 [B]."""


def read_images(layout: RunLayout, manifest: RolloutManifest, number: int) -> ShardImages:
    """Read the images of a shard of a plan, without torch.

    Raises the errors of `read_arrays`, and `ForeignFileError` for a shard of another plan or another place in it.
    """
    path = layout.shard(manifest.iteration, number, len(manifest.shards))
    arrays, fields = read_arrays(path, "rollout", ("images", "seed", "sample_index", "prompt_index", "task_index"))
    check_samples(arrays, fields, manifest, number, path)
    return ShardImages(arrays["images"], arrays["seed"])


def check_samples(
    tensors: Mapping[str, Any], fields: Mapping[str, Any], manifest: RolloutManifest, number: int, path: Path
) -> None:
    """Raise `ForeignFileError` unless a record holds the samples that its plan has in the shard of that number."""
    check_plan(fields, manifest, path)
    start, stop = manifest.shards[number]
    if tensors["sample_index"].tolist() != list(range(start, stop)):
        raise ForeignFileError(
            f"{path}: does not hold the samples {start} to {stop - 1} of its plan; {REMEDY.format(path=path)}"
        )
    found = [
        [fields["prompts"][prompt], fields["tasks"][task]]
        for prompt, task in zip(tensors["prompt_index"].tolist(), tensors["task_index"].tolist(), strict=True)
    ]
    planned = [[manifest.prompt_of(sample), manifest.tasks[manifest.task_of(sample)]] for sample in range(start, stop)]
    if found != planned:
        raise ForeignFileError(
            f"{path}: has other prompts, tasks or timesteps than its plan; {REMEDY.format(path=path)}"
        )


def publish_rewards(
    layout: RunLayout,
    manifest: RolloutManifest,
    number: int,
    directory: str,
    reward: Mapping[str, Any],
    sample_index: Tensor,
    values: Tensor,
) -> None:
    """Publish the rewards of a shard's samples: int64 [B], float32 [B], bound to the shard's digest."""
    read_run_identity(layout)
    shards = len(manifest.shards)
    receipt = read_receipt(layout.shard(manifest.iteration, number, shards))
    fields = {"plan": manifest.digest, "shard_sha256": receipt.sha256, "reward": dict(reward)}
    publish_record(
        layout.reward_shard(manifest.iteration, directory, number, shards),
        "rewards",
        {"sample_index": sample_index, "reward": values},
        fields,
    )


@dataclass(frozen=True)
class Scores:
    """One reward of the samples of a plan."""

    values: np.ndarray
    """float32 [samples], in the order of the samples; NaN for those of tasks that do not have the reward."""
    revision: str
    """Digest of what gave them; empty where nothing is behind the reward."""


def read_rewards(
    layout: RunLayout, manifest: RolloutManifest, directory: str, tasks: Collection[str] | None = None
) -> np.ndarray:
    """Read the values of `read_scores`."""
    return read_scores(layout, manifest, directory, tasks).values


def read_scores(
    layout: RunLayout, manifest: RolloutManifest, directory: str, tasks: Collection[str] | None = None
) -> Scores:
    """Read one reward of all samples of a plan, as the newest version of it that has scored them gave it.

    `directory`: the reward's `<slug>-<digest>`. `tasks`: whose samples the reward was given to, None for
    all; the others' are NaN.

    Raises `MissingFileError` where shards are not scored, and `ForeignFileError` where the rewards were
    given to another shard than the one that is there, to other samples, or by different weights, code or
    servers to different shards. Raises `RewardError` for rewards that are not finite.
    """
    shards = len(manifest.shards)
    directory = newest_scores(layout, manifest.iteration, directory)
    values = np.full(manifest.shards[-1][1], np.nan, dtype=np.float32)
    revisions: dict[str, Path] = {}
    for number in range(shards):
        path = layout.reward_shard(manifest.iteration, directory, number, shards)
        if not is_published(path):
            raise MissingFileError(
                f"{path}: not there; score the rollout first with `{command('score', '--run', layout.root)}`"
            )
        arrays, fields = read_arrays(path, "rewards")
        check_rewards_place(fields, manifest, path)
        shard = read_receipt(layout.shard(manifest.iteration, number, shards))
        if fields.get("shard_sha256") != shard.sha256:
            raise ForeignFileError(f"{path}: scores another shard than the one there; {REMEDY.format(path=path)}")
        samples = manifest.samples_of(manifest.tasks if tasks is None else tasks, number)
        if arrays["sample_index"].tolist() != samples:
            raise ForeignFileError(
                f"{path}: does not score the {len(samples)} samples of its shard that it should; "
                + REMEDY.format(path=path)
            )
        if not np.isfinite(arrays["reward"]).all():
            raise RewardError(f"{path}: holds a NaN or infinite reward; {REMEDY.format(path=path)}")
        revisions.setdefault(fields["reward"]["revision"], path)
        values[samples] = arrays["reward"]
    if len(revisions) > 1:
        raise ForeignFileError(
            f"{path.parent}: {' and '.join(file.name for file in revisions.values())} were scored by different "
            f"weights, code or servers of the same reward; {REMEDY.format(path=path.parent)}"
        )
    return Scores(values, next(iter(revisions)))


def read_shard_rewards(layout: RunLayout, manifest: RolloutManifest, number: int) -> dict[str, dict[int, float]]:
    """Read every reward that a shard was given, whoever asked for it: `<slug>-<digest>` → sample → reward.

    Of a reward that has changed, the newest version's.

    Raises the errors of `read_record`, and `ForeignFileError` for rewards of another plan.
    """
    rewards = {}
    shards = len(manifest.shards)
    folders = (layout.rollout(manifest.iteration) / "rewards").glob("*")
    for folder in sorted(folders, key=lambda folder: split_scores_folder(folder.name)):
        path = layout.reward_shard(manifest.iteration, folder.name, number, shards)
        if is_published(path):
            arrays, fields = read_arrays(path, "rewards")
            check_rewards_place(fields, manifest, path)
            samples = arrays["sample_index"].tolist()
            rewards[split_scores_folder(folder.name)[0]] = dict(zip(samples, arrays["reward"].tolist(), strict=True))
    return rewards


def missing_shards(layout: RunLayout, manifest: RolloutManifest) -> list[int]:
    """Numbers of the shards that are not published."""
    count = len(manifest.shards)
    return [n for n in range(count) if not is_published(layout.shard(manifest.iteration, n, count))]


def is_pruned(layout: RunLayout, manifest: RolloutManifest, wanted: Callable[[int], bool] = lambda _: True) -> bool:
    """Return whether shards of a rollout, of the wanted numbers, were removed after training on it; receipts stay."""
    count = len(manifest.shards)
    paths = [layout.shard(manifest.iteration, number, count) for number in range(count) if wanted(number)]
    return any(is_published(path) and not path.exists() for path in paths)


def missing_rewards(layout: RunLayout, manifest: RolloutManifest, directory: str) -> list[int]:
    """Numbers of the shards that lack a reward."""
    count = len(manifest.shards)
    return [
        number
        for number in range(count)
        if not is_published(layout.reward_shard(manifest.iteration, directory, number, count))
    ]


def check_plan(fields: Mapping[str, Any], manifest: RolloutManifest, path: Path) -> None:
    """Raise `ForeignFileError` unless a record's fields bind it to a plan."""
    if fields.get("plan") != manifest.digest:
        raise ForeignFileError(f"{path}: belongs to another plan than its manifest; {REMEDY.format(path=path)}")


def check_rewards_place(fields: Mapping[str, Any], manifest: RolloutManifest, path: Path) -> None:
    """Raise `ForeignFileError` unless the fields of rewards bind them to a plan and to the folder that they lie in."""
    check_plan(fields, manifest, path)
    if split_scores_folder(path.parent.name)[0].rpartition("-")[2] != fields["reward"]["digest"]:
        raise ForeignFileError(
            f"{path}: holds what another reward, {fields['reward']['name'][:200]}, gave; {REMEDY.format(path=path)}"
        )
