"""Scoring the images of an evaluation's folder, without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlcm_cli.errors import ConfigError
from rlcm_cli.events import Advanced, Event, PhaseStarted
from rlcm_cli.judging.folder import REWARD, Results, Row, read_image, read_results, write_results
from rlcm_cli.phases.score import BATCH, Scorer
from rlcm_cli.rewards import RewardSpec, load_reward
from rlcm_cli.store.score_cache import ScoreCache, digest_images


@dataclass(frozen=True)
class Numbered:
    """An image with its place among others."""

    group: int
    """Number of the images of its way and prompt."""
    number: int
    row: Row


def load_judges(specs: Sequence[RewardSpec], cache: ScoreCache | None = None) -> list[Scorer]:
    """Load the rewards that judge. Raises as `load_reward`, and `ConfigError` for one that people give."""
    judges = [Scorer(spec, load_reward(spec), (), cache) for spec in specs]
    for judge in judges:
        if judge.reward.by_people:
            raise ConfigError(
                f"reward {judge.spec.name!r} is given by people, on images of a run (`rlcm vote RUN`); leave it out"
            )
    return judges


def score_folder(
    folder: Path, judges: Sequence[Scorer], device: torch.device = torch.device("cpu")
) -> Iterator[Event]:
    """Give the images of a folder the rewards that they lack, or have of another version, and write its summary.

    Values that are there stay. Each reward is stored once all images have it. Raises as `read_results` and
    `read_image`.
    """
    results = read_results(folder)
    for judge in judges:
        key, identity = REWARD + judge.spec.name, _identify(judge)
        known = results.rewards.get(judge.spec.name) == identity
        rows = [row for row in results.rows if not known or row.get(key) is None]
        if rows:
            groups = _group(results.rows if judge.reward.set_level else rows)
            yield PhaseStarted("score", 0, sum(map(len, groups)), "images")
            for part in _batch(groups):
                _score(folder, judge, part, device)
                yield Advanced(len(part))
            results = Results(results.rows, {**results.rewards, judge.spec.name: identity})
            write_results(folder, results)


def _score(folder: Path, judge: Scorer, images: Sequence[Numbered], device: torch.device) -> None:
    """Note what a reward gives to some images."""
    pictures = [torch.from_numpy(read_image(folder, image.row)) for image in images]
    for size in dict.fromkeys(picture.shape for picture in pictures):
        places = [place for place, picture in enumerate(pictures) if picture.shape == size]
        part, stacked = [images[place] for place in places], torch.stack([pictures[place] for place in places])
        metadata = [
            {"sample": image.number, "seed": image.row.get("seed") or 0, "group": image.group} for image in part
        ]
        prompts = [image.row["prompt"] for image in part]
        values = judge.score(stacked, prompts, metadata, digest_images(stacked), device)
        for image, value in zip(part, values.tolist(), strict=True):
            image.row[REWARD + judge.spec.name] = value


def _group(rows: Sequence[Row]) -> list[list[Numbered]]:
    """Put the images of one way and prompt together."""
    groups: dict[tuple[str, str], list[Numbered]] = {}
    for number, row in enumerate(rows):
        own = groups.setdefault((row["way"], row["prompt"]), [])
        own.append(Numbered(own[0].group if own else len(groups) - 1, number, row))
    return list(groups.values())


def _batch(groups: Sequence[list[Numbered]]) -> Iterator[list[Numbered]]:
    """Yield whole groups of one way, about `BATCH` images at once."""
    part: list[Numbered] = []
    for group in groups:
        if part and (len(part) + len(group) > BATCH or part[0].row["way"] != group[0].row["way"]):
            yield part
            part = []
        part += group
    if part:
        yield part


def _identify(judge: Scorer) -> dict[str, Any]:
    """Return what gives the values of a reward; without where it is asked."""
    return {"digest": judge.spec.digest, "revision": judge.reward.revision}
