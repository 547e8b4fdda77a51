"""Which images are compared with which: those of one prompt, of a rollout or of several evaluations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.rollouts import is_pruned, missing_shards, read_images
from rlcm_cli.store.shards import read_receipt
from rlcm_cli.store.votes import ImageReference
from rlcm_cli.wording import command

Gallery = Mapping[str, np.ndarray]
"""Record → its images, uint8 [B, 3, H, W]."""


@dataclass(frozen=True)
class Contest:
    """Images of one prompt that are compared with each other."""

    prompt: str
    images: tuple[ImageReference, ...]


@dataclass(frozen=True)
class Contender:
    """A checkpoint whose evaluation is compared with others'."""

    name: str
    """As shown, never to a voter."""
    layout: RunLayout
    checkpoint: int

    @property
    def record(self) -> str:
        """SHA-256 of its evaluation. Raises `MissingFileError` where it was not evaluated."""
        if self.checkpoint not in self.layout.evaluations():
            evaluate = command("evaluate", "--run", self.layout.root, "--checkpoint", self.checkpoint)
            raise MissingFileError(
                f"{self.layout.root}: checkpoint {self.checkpoint} has no held-out images; draw them with `{evaluate}`"
            )
        return read_receipt(self.layout.evaluation(self.checkpoint)).sha256


def rollout_records(layout: RunLayout, manifest: RolloutManifest) -> list[str]:
    """Return the SHA-256 of each shard of a plan. Raises `MissingFileError` where one was not sampled."""
    shards = len(manifest.shards)
    if missing_shards(layout, manifest):
        sample = command("sample", "--run", layout.root)
        raise MissingFileError(
            f"{layout.rollout(manifest.iteration)}: is not sampled yet, or in part; run `{sample}` first"
        )
    return [read_receipt(layout.shard(manifest.iteration, number, shards)).sha256 for number in range(shards)]


def contests_of_rollout(layout: RunLayout, iteration: int, tasks: Collection[str]) -> list[Contest]:
    """Return the contests of an iteration: its groups, or the images of each prompt where groups have one image.

    `tasks`: whose samples are compared. Raises as `rollout_records`.
    """
    manifest = read_manifest(layout.manifest(iteration))
    references = sample_references(layout, manifest)
    together: dict[Hashable, list[int]] = defaultdict(list)
    for sample in manifest.samples_of(tasks):
        alone = (manifest.task_of(sample), manifest.prompt_of(sample))
        together[sample // manifest.group_size if manifest.group_size > 1 else alone].append(sample)
    return [
        Contest(manifest.prompt_of(samples[0]), tuple(references[sample] for sample in samples))
        for samples in together.values()
    ]


def sample_references(layout: RunLayout, manifest: RolloutManifest) -> list[ImageReference]:
    """Name the image of each sample of an iteration, in their order. Raises as `rollout_records`."""
    return [
        ImageReference(record=record, row=row)
        for record, (start, stop) in zip(rollout_records(layout, manifest), manifest.shards, strict=True)
        for row in range(stop - start)
    ]


def contests_of_evaluations(contenders: Sequence[Contender]) -> list[Contest]:
    """Return the contests of checkpoints: the n-th image of each prompt by all that have one, in their order.

    Raises `MissingFileError` for one without an evaluation, `ConfigError` where no two share a prompt.
    """
    places: dict[tuple[str, int], list[ImageReference]] = defaultdict(list)
    for contender in contenders:
        record, seen = contender.record, defaultdict[str, int](int)
        for row, prompt in enumerate(read_evaluation(contender.layout, contender.checkpoint, images=False).prompts):
            places[prompt, seen[prompt]].append(ImageReference(record=record, row=row))
            seen[prompt] += 1
    contests = [Contest(prompt, tuple(images)) for (prompt, _), images in places.items() if len(images) > 1]
    if not contests:
        raise ConfigError(
            f"{' and '.join(contender.name for contender in contenders)}: their held-out images have no prompt in "
            "common; compare runs with the same prompts"
        )
    return contests


def read_rollout_images(layout: RunLayout, iteration: int) -> Gallery:
    """Read the images of an iteration. Raises `MissingFileError` where they were pruned, and as `read_images`."""
    manifest = read_manifest(layout.manifest(iteration))
    if is_pruned(layout, manifest):
        raise MissingFileError(f"{layout.rollout(iteration)}: was pruned (--keep-rollouts), so its images are gone")
    records = rollout_records(layout, manifest)
    return {record: read_images(layout, manifest, number).images for number, record in enumerate(records)}


def read_evaluation_images(contender: Contender) -> Gallery:
    """Read the held-out images of a checkpoint. Raises as `read_evaluation`."""
    return {contender.record: read_evaluation(contender.layout, contender.checkpoint).images}
