"""A session of voting: who votes, which pairs are left for each voter, and names of images that reveal nothing."""

from __future__ import annotations

import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlcm_cli.pictures.contact_sheet import to_picture
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.votes import Answer, ImageReference, new_voter, publish_vote, read_votes
from rlcm_cli.voting.contests import Contest, Gallery
from rlcm_cli.voting.plan import Pair, plan_pairs

AHEAD = 3
"""Pairs that a page is told of at once, so that it can load their images early."""


@dataclass
class Voter:
    """A voter's pairs, in the order in which they are shown."""

    pairs: Sequence[Pair]
    answered: set[int] = field(default_factory=set)
    """Numbers of those that are answered or skipped."""

    def coming(self) -> list[int]:
        """Numbers of the next pairs."""
        return [number for number in range(len(self.pairs)) if number not in self.answered][:AHEAD]


class Session:
    """Votes on the pairs of some contests, published in a run as they come.

    Args:
        layout: The run.
        contests: What is compared.
        gallery: The images.
        most: Pairs that each voter is shown at most; None: all that are planned.
    """

    def __init__(
        self, layout: RunLayout, contests: Sequence[Contest], gallery: Gallery, most: int | None = None
    ) -> None:
        self._layout, self._contests, self._most = layout, contests, most
        self._gallery = gallery
        # Of this session only: neither order nor name of an image says where it comes from.
        self._names = {image: secrets.token_hex(8) for contest in contests for image in contest.images}
        self._images = {name: image for image, name in self._names.items()}
        self.voters: dict[str, Voter] = {}
        for voter, votes in read_votes(layout).items():
            known = {vote.pair for vote in votes}
            pairs = self._plan(voter)
            answered = {number for number, pair in enumerate(pairs) if pair.images in known}
            self.voters[voter] = Voter(pairs, answered)

    @property
    def planned(self) -> int:
        """Pairs for a new voter."""
        return len(self._plan("0"))

    @property
    def images(self) -> int:
        """Images that are compared."""
        return len(self._names)

    def join(self) -> str:
        """Add a voter and return its name."""
        voter = new_voter()
        self.voters[voter] = Voter(self._plan(voter))
        return voter

    def answer(self, voter: str, number: int, answer: Answer) -> None:
        """Publish what a voter says of the pair of a number, again where it was answered before.

        Raises `KeyError` for an unknown voter, `IndexError` for a number that is not planned, and as `publish_vote`.
        """
        own = self.voters[voter]
        pair = own.pairs[number]
        publish_vote(self._layout, voter, pair.left, pair.right, answer)
        own.answered.add(number)

    def name(self, image: ImageReference) -> str:
        """Return the name of an image in this session."""
        return self._names[image]

    def encode(self, name: str) -> bytes:
        """Return the image of a name as a PNG. Raises `KeyError` for an unknown name."""
        image = self._images[name]
        file = io.BytesIO()
        to_picture(self._gallery[image.record][image.row]).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _plan(self, voter: str) -> list[Pair]:
        # Another order for each voter, the same one whenever the voter comes back.
        return plan_pairs(self._contests, int(voter, 16))[: self._most]
