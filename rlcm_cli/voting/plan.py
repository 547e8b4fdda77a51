"""Which pairs a voter is shown, and in what order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlcm_cli.store.votes import ImageReference
from rlcm_cli.voting.contests import Contest


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt, as they are shown."""

    prompt: str
    left: ImageReference
    right: ImageReference

    @property
    def images(self) -> frozenset[ImageReference]:
        """The two images, wherever they are shown."""
        return frozenset((self.left, self.right))


def plan_pairs(contests: Sequence[Contest], seed: int) -> list[Pair]:
    """Return the pairs of all contests in the order in which they are shown.

    Round by round, so that a voter who stops early has seen each image as often as any other: in round r, each image
    meets the one that stands r places after it in a ring, whose order is drawn for each contest. Up to seven images
    all pairs are shown; of K images, log₂ K rounds. Sides and the order within a round are random.

    Args:
        contests: What is compared.
        seed: Of all that is random, a whole number of at most 64 bits.
    """
    generator = np.random.default_rng(seed)
    rounds: dict[int, list[Pair]] = defaultdict(list)
    for contest in contests:
        ring = generator.permutation(len(contest.images))
        for number, first, second in pair_ring(len(ring)):
            sides = [contest.images[ring[first]], contest.images[ring[second]]]
            left, right = sides if generator.random() < 0.5 else sides[::-1]
            rounds[number].append(Pair(contest.prompt, left, right))
    return [rounds[number][index] for number in sorted(rounds) for index in generator.permutation(len(rounds[number]))]


def pair_ring(size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (round, place, place) of the pairs of a ring, rounds counted from 1."""
    last = min(size // 2, math.ceil(math.log2(size))) if size > 1 else 0
    for number in range(1, last + 1):
        # Halfway round the ring, each pair would be met from both of its ends.
        for place in range(size // 2 if 2 * number == size else size):
            yield number, place, (place + number) % size
