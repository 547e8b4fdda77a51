"""What was behind each reward of a run: its code, weights or server, which may change between two calls.

    RUN/rewards/<slug>-<digest>/000000.json   the version that scored first, and one file more for each change

`<slug>-<digest>` names a reward with its settings, and is the folder of the scores that its first version gave. Those
of version n are in `<slug>-<digest>-v<n>-<8 hex digits>` next to it, so that scores of two versions are never
confused. A reward that nothing is behind, such as the size of a JPEG, has no versions.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from rlcm_cli.core.digests import canonical_json, sha256
from rlcm_cli.errors import ForeignFileError
from rlcm_cli.store.atomic import publish_bytes
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.metrics import IterationMetrics
from rlcm_cli.store.reading import REMEDY, Record, read_object

_LATER = re.compile(r"-v(\d+)-[0-9a-f]{8}$")


class RewardVersion(Record):
    """One version of a reward."""

    format_version: int = FORMAT_VERSION
    number: int = Field(ge=0, lt=10**6)
    reward: str
    """Its name."""
    revision: str
    """Digest of what is behind it, as the reward itself gives it."""

    def scores_folder(self, directory: str) -> str:
        """Name the folder of its scores; `directory` is the reward's `<slug>-<digest>`."""
        return directory if self.number == 0 else f"{directory}-v{self.number}-{sha256(self.revision.encode())[:8]}"


def versions_folder(layout: RunLayout, directory: str) -> Path:
    """Name the folder of a reward's versions."""
    return layout.root / "rewards" / directory


def current_version(layout: RunLayout, directory: str) -> RewardVersion | None:
    """Read the newest version of a reward; None where nothing was scored yet. Raises the errors of `read_json`."""
    newest = None
    for file in sorted(versions_folder(layout, directory).glob("*.json")):
        newest = read_object(file, RewardVersion, "version of a reward")
        if file.stem != f"{newest.number:06d}":
            raise ForeignFileError(f"{file}: is version {newest.number} of a reward; {REMEDY.format(path=file)}")
    return newest


def claim_version(layout: RunLayout, directory: str, reward: str, revision: str) -> RewardVersion:
    """Return the version that has a revision, publishing it where it is not the newest.

    Where two processes claim at once, the one that comes first decides. Raises `ForeignFileError` for the other one,
    if it has another revision.
    """
    newest = current_version(layout, directory)
    if newest is not None and newest.revision == revision:
        return newest
    claimed = RewardVersion(number=newest.number + 1 if newest else 0, reward=reward, revision=revision)
    path = versions_folder(layout, directory) / f"{claimed.number:06d}.json"
    if not publish_bytes(path, canonical_json(claimed.model_dump()).encode()):
        found = current_version(layout, directory)
        if found != claimed:
            raise ForeignFileError(
                f"{path}: another process scores with other code, weights or another server of reward {reward!r}; use "
                "the same everywhere, then run the same command again"
            )
    return claimed


def newest_scores(layout: RunLayout, iteration: int, directory: str) -> str:
    """Name the folder of the scores that an iteration has of a reward's newest version.

    `directory` itself, of the first version, where there are none of a later one.
    """
    folders = (layout.rollout(iteration) / "rewards").glob(f"{directory}-v*")
    later = {int(match[1]): folder.name for folder in folders if (match := _LATER.search(folder.name))}
    return later[max(later)] if later else directory


def split_scores_folder(name: str) -> tuple[str, int]:
    """Take the name of a folder of scores apart: the reward's `<slug>-<digest>`, and the number of the version."""
    match = _LATER.search(name)
    return (name[: match.start()], int(match[1])) if match else (name, 0)


def comparable_rows(rows: Sequence[IterationMetrics]) -> list[IterationMetrics]:
    """Return the metrics since the last change of what is behind a reward: numbers before it are another reward's."""
    first = 0
    for index, (before, after) in enumerate(itertools.pairwise(rows), 1):
        if changed_rewards(before.reward_revisions, after.reward_revisions):
            first = index
    return list(rows[first:])


def changed_rewards(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Name the rewards, of two iterations' name → revision, that come from different versions."""
    return [name for name in after if name in before and before[name] != after[name]]
