"""What votes come to: wins, a score for each image, preferred pairs, and how often one checkpoint beats another."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from rlcm_cli.core.paired_comparisons import WinRate, average_wins, fit_scores
from rlcm_cli.store.votes import ImageReference, Vote
from rlcm_cli.voting.contests import Contest

PairVotes = Mapping[frozenset[ImageReference], Sequence[Vote]]
"""Two images → the votes on them, one a voter."""
SHARES = {"left": 1.0, "tie": 0.5, "right": 0.0}
"""Answer → what the left image gets of a win. A skipped pair has none."""


def group_votes(votes: Iterable[Vote]) -> dict[frozenset[ImageReference], list[Vote]]:
    """Sort votes by the images that they are on, without those that were skipped."""
    grouped: dict[frozenset[ImageReference], list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.answer in SHARES:
            grouped[vote.pair].append(vote)
    return grouped


def credit(vote: Vote, image: ImageReference) -> float:
    """Return what an image gets of a vote on it: 1, ½ or 0."""
    share = SHARES[vote.answer]
    return share if image == vote.left else 1 - share


def count_wins(contest: Contest, votes: PairVotes) -> np.ndarray:
    """Return how often each image of a contest was preferred to each other one, float64 [K, K]."""
    images = contest.images
    wins = np.zeros((len(images), len(images)))
    for first, second in combinations(range(len(images)), 2):
        for vote in votes.get(frozenset((images[first], images[second])), ()):
            share = credit(vote, images[first])
            wins[first, second] += share
            wins[second, first] += 1 - share
    return wins


def score_images(contests: Iterable[Contest], votes: PairVotes) -> dict[ImageReference, float]:
    """Return the score of each image that somebody voted on, by `fit_scores` of its contest."""
    scores: dict[ImageReference, float] = {}
    for contest in contests:
        wins = count_wins(contest, votes)
        fitted = fit_scores(wins)
        compared = (wins + wins.T).sum(1) > 0
        scores |= {image: float(fitted[row]) for row, image in enumerate(contest.images) if compared[row]}
    return scores


def preferred_pairs(contests: Iterable[Contest], votes: PairVotes) -> list[tuple[ImageReference, ImageReference]]:
    """Return the pairs that most of their voters agree on: the better, then the worse."""
    pairs = []
    for contest in contests:
        for first, second in combinations(contest.images, 2):
            shares = [credit(vote, first) for vote in votes.get(frozenset((first, second)), ())]
            if shares and statistics.fmean(shares) != 0.5:
                pairs.append((first, second) if statistics.fmean(shares) > 0.5 else (second, first))
    return pairs


def win_rate(contests: Iterable[Contest], votes: PairVotes, contender: str, against: str) -> WinRate | None:
    """Return how often the images of one record were preferred to those of another; None: nobody compared them."""
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for contest in contests:
        own, other = ([image for image in contest.images if image.record == record] for record in (contender, against))
        for image in own:
            for rival in other:
                shares = [credit(vote, image) for vote in votes.get(frozenset((image, rival)), ())]
                by_prompt[contest.prompt] += shares
    return average_wins(by_prompt)


def agreement(votes: PairVotes) -> tuple[float, int] | None:
    """Return how often two voters said the same of the same pair, and how many such twos there are; None: none."""
    same = [
        credit(one, one.left) == credit(other, one.left)
        for own in votes.values()
        for one, other in combinations(own, 2)
    ]
    return (statistics.fmean(same), len(same)) if same else None
