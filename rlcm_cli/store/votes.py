"""People's votes on pairs of images, as files of a run: one a vote, in the order in which a voter gave them.

    RUN/votes/<voter>/000000.json

A voter is a random number, and nothing else is known of the person. An image is named by the digest of the record
that it lies in and its row there, so that a vote is bound to what was seen. A later vote of a voter on the same two
images replaces the earlier one.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from rlcm_cli.core.digests import canonical_json
from rlcm_cli.errors import ForeignFileError
from rlcm_cli.store.atomic import publish_bytes
from rlcm_cli.store.identity import check_owner, read_run_identity
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.reading import REMEDY, Record, read_object

Answer = Literal["left", "right", "tie", "skip"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
VOTER = re.compile(r"[0-9a-f]{8}")


class ImageReference(Record):
    """An image of a run."""

    record: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the record that it lies in, a shard or an evaluation."""
    row: Annotated[int, Field(ge=0)]
    """Its row there."""


class Vote(Record):
    """What a voter said of two images of one prompt."""

    format_version: int = FORMAT_VERSION
    run: str
    """Identity of the run that it lies in; the images may be of others."""
    voter: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    number: Annotated[int, Field(ge=0, lt=10**6)]
    left: ImageReference
    """Shown on the left."""
    right: ImageReference
    answer: Answer
    """Which one is better; `skip` says nothing of them."""

    @property
    def pair(self) -> frozenset[ImageReference]:
        """The two images, wherever they were shown."""
        return frozenset((self.left, self.right))


def new_voter() -> str:
    """Return a voter that no run has yet: eight random hexadecimal digits."""
    return secrets.token_hex(4)


def publish_vote(layout: RunLayout, voter: str, left: ImageReference, right: ImageReference, answer: Answer) -> Vote:
    """Publish a voter's next vote, and return it. Raises `MissingFileError` where the run directory is gone."""
    run = read_run_identity(layout)
    number = len(vote_files(layout, voter))
    while True:
        vote = Vote(run=run, voter=voter, number=number, left=left, right=right, answer=answer)
        if publish_bytes(layout.vote(voter, number), canonical_json(vote.model_dump()).encode()):
            return vote
        number += 1  # the same voter is at another window


def read_votes(layout: RunLayout) -> dict[str, list[Vote]]:
    """Read all votes of a run: voter → votes, oldest first.

    Raises the errors of `read_object`, and `ForeignFileError` for a vote of another run, voter or number.
    """
    return {voter: [read_vote(layout, file) for file in vote_files(layout, voter)] for voter in list_voters(layout)}


def list_voters(layout: RunLayout) -> list[str]:
    """Name who has voted on a run."""
    folder = layout.votes
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if VOTER.fullmatch(name))


def standing_votes(votes: dict[str, list[Vote]]) -> list[Vote]:
    """Return the last vote of each voter on each pair; earlier ones were replaced by it."""
    return [vote for own in votes.values() for vote in {vote.pair: vote for vote in own}.values()]


def vote_files(layout: RunLayout, voter: str) -> list[Path]:
    """List a voter's votes, oldest first."""
    return sorted(layout.vote(voter, 0).parent.glob("[0-9]" * 6 + ".json"))


def read_vote(layout: RunLayout, path: Path) -> Vote:
    """Read one vote. Raises as `read_votes`."""
    vote = read_object(path, Vote, "vote")
    check_owner(vote.run, layout, path)
    if layout.vote(vote.voter, vote.number) != path:
        raise ForeignFileError(f"{path}: is vote {vote.number} of voter {vote.voter}; {REMEDY.format(path=path)}")
    return vote
