"""The images of a report: fixed prompts and seeds through training, and the best and worst samples.

Their number and size are bounded, so that the file stays small whatever the run: WebP of at most `EDGE` pixels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rlcm_cli.errors import RlcmError
from rlcm_cli.pictures.contact_sheet import to_picture
from rlcm_cli.report.run.data import RunData
from rlcm_cli.store.evaluations import Evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest
from rlcm_cli.store.rollouts import ShardImages, is_pruned, missing_shards, read_images

EDGE = 224
QUALITY = 82
NEWEST_ITERATIONS = 10
"""Newest iterations with images that the best and worst samples are taken from."""


@dataclass(frozen=True)
class Budget:
    """How many images a run may show."""

    fixed: int
    """Pairs of prompt and seed that are followed through training."""
    checkpoints: int
    """At least 2."""
    extremes: int
    """Best samples of a reward, and as many worst ones."""


@dataclass(frozen=True)
class Sample:
    """An image with what it was drawn from and how it was scored."""

    picture: str
    """A data URI."""
    prompt: str
    seed: int
    reward: float
    where: str
    """Rollout and sample, or checkpoint, as shown."""


@dataclass(frozen=True)
class FixedImage:
    """One prompt and seed, drawn with several checkpoints."""

    prompt: str
    seed: int
    held_out: bool
    pictures: Sequence[str]
    """A data URI a checkpoint."""
    rewards: Mapping[str, Sequence[float | None]]
    """Reward → its value at each checkpoint."""


@dataclass(frozen=True)
class Extremes:
    """The samples with the highest and the lowest reward."""

    best: Sequence[Sample]
    worst: Sequence[Sample]
    source: str
    """What they are the best and worst of, as shown."""


def share_budget(runs: int) -> Budget:
    """Share the images of a report between its runs."""
    return Budget(max(4, 24 // runs), max(3, 12 // runs), max(3, 8 // runs))


def encode_picture(image: np.ndarray) -> str:
    """Encode uint8 [3, H, W] as the data URI of a WebP, made smaller where it is larger than `EDGE`."""
    picture = to_picture(image)
    picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def follow_images(data: RunData, budget: Budget) -> tuple[list[int], list[FixedImage]]:
    """Return the checkpoints shown, evenly spread with the first and the last, and the images of each prompt and seed.

    The first image of each prompt comes before the second of any; the order of prompts is the evaluation's, which
    has held-out ones first.
    """
    shown = _spread(data.evaluations, budget.checkpoints)
    if not shown:
        return [], []
    rows_of = [_index_rows(evaluation) for evaluation in shown]
    common = [key for key in rows_of[0] if all(key in other for other in rows_of)]
    seen: dict[str, int] = {}
    turns = []
    for key in common:
        turns.append(seen.get(key[0], 0))
        seen[key[0]] = turns[-1] + 1
    chosen = [key for _, key in sorted(zip(turns, common, strict=True), key=lambda pair: pair[0])]
    chosen = _mix_held_out(chosen, shown[0], rows_of[0], budget.fixed)
    images = []
    for key in chosen:
        rows = [index[key] for index in rows_of]
        rewards = {
            name: [_known(found.rewards[name][row]) for found, row in zip(shown, rows, strict=True)]
            for name in shown[0].rewards
            if all(name in found.rewards for found in shown)
        }
        pictures = [encode_picture(found.images[row]) for found, row in zip(shown, rows, strict=True)]
        images.append(FixedImage(key[0], key[1], bool(shown[0].held_out[rows[0]]), pictures, rewards))
    return [evaluation.checkpoint for evaluation in shown], images


def find_extremes(data: RunData, reward: str, count: int) -> Extremes | None:
    """Find the best and worst images by a reward among the newest rollouts, else in the last evaluation.

    None where neither has images with that reward.
    """
    layout = data.layout
    pool: list[tuple[float, RolloutManifest, int]] = []
    iterations: list[int] = []
    for rollout in reversed(data.rollouts):
        manifest = rollout.manifest
        if len(iterations) == NEWEST_ITERATIONS:
            break
        if reward not in rollout.rewards or is_pruned(layout, manifest) or missing_shards(layout, manifest):
            continue
        iterations.append(manifest.iteration)
        values = rollout.rewards[reward].tolist()
        pool += [(value, manifest, sample) for sample, value in enumerate(values) if not math.isnan(value)]
    if pool:
        pool.sort(key=lambda entry: -entry[0])
        shards = _ShardReader(layout)
        best, worst = (
            [sample for entry in part if (sample := shards.show(*entry)) is not None]
            for part in (pool[:count], pool[: -count - 1 : -1])
        )
        if best or worst:
            newest = f"rollout {iterations[0]}"
            if len(iterations) > 1:
                kept = f"{iterations[-1]} to {iterations[0]}"
                newest = f"the {len(iterations)} newest rollouts that still have their images ({kept})"
            return Extremes(best, worst, f"{len(pool):,} images of {newest}")
    found = [evaluation for evaluation in data.evaluations if reward in evaluation.rewards]
    return _extremes_of(found[-1], reward, count) if found else None


def _extremes_of(evaluation: Evaluation, reward: str, count: int) -> Extremes:
    values = evaluation.rewards[reward].tolist()
    rows = sorted((row for row, value in enumerate(values) if not math.isnan(value)), key=lambda row: -values[row])
    where = f"checkpoint {evaluation.checkpoint}"

    def show(row: int) -> Sample:
        picture = encode_picture(evaluation.images[row])
        return Sample(picture, evaluation.prompts[row], int(evaluation.seed[row]), values[row], where)

    best, worst = ([show(row) for row in part] for part in (rows[:count], rows[: -count - 1 : -1]))
    return Extremes(best, worst, f"{len(rows):,} images of the evaluation of {where}; there are no images of rollouts")


class _ShardReader:
    """Reads each shard once, and leaves out a damaged one."""

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout
        self._shards: dict[tuple[int, int], ShardImages | None] = {}

    def show(self, reward: float, manifest: RolloutManifest, sample: int) -> Sample | None:
        number = next(index for index, (start, stop) in enumerate(manifest.shards) if start <= sample < stop)
        key = manifest.iteration, number
        if key not in self._shards:
            try:
                self._shards[key] = read_images(self._layout, manifest, number)
            except RlcmError:
                self._shards[key] = None
        shard = self._shards[key]
        if shard is None:
            return None
        row = sample - manifest.shards[number][0]
        where = f"rollout {manifest.iteration}, sample {sample}"
        return Sample(
            encode_picture(shard.images[row]), manifest.prompt_of(sample), int(shard.seed[row]), reward, where
        )


def _mix_held_out(
    keys: Sequence[tuple[str, int]], evaluation: Evaluation, rows: Mapping[tuple[str, int], int], count: int
) -> list[tuple[str, int]]:
    """Choose so many keys, of which at most a third are of held-out prompts while there are others."""
    kept_out = [key for key in keys if evaluation.held_out[rows[key]]]
    others = [key for key in keys if not evaluation.held_out[rows[key]]]
    prompts = len({prompt for prompt, _ in kept_out})  # not a prompt twice while there are others
    share = max(min(count // 3, prompts), count - len(others))
    return [*kept_out[:share], *others][:count]


def _index_rows(evaluation: Evaluation) -> dict[tuple[str, int], int]:
    """Return (prompt, seed) → row."""
    return {key: row for row, key in enumerate(zip(evaluation.prompts, evaluation.seed.tolist(), strict=True))}


def _spread(evaluations: Sequence[Evaluation], most: int) -> list[Evaluation]:
    last = len(evaluations) - 1
    if last < most:
        return list(evaluations)
    return [evaluations[round(index * last / (most - 1))] for index in range(most)]


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
