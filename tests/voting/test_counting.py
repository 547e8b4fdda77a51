"""What votes come to, by hand and over many random voters."""

from __future__ import annotations

import numpy as np
import pytest

from rlcm_cli.core.paired_comparisons import WinRate, wilson_interval
from rlcm_cli.store.votes import ImageReference, Vote
from rlcm_cli.voting.contests import Contest
from rlcm_cli.voting.counting import (
    agreement,
    count_wins,
    group_votes,
    preferred_pairs,
    score_images,
    win_rate,
)

A, B, C = (ImageReference(record="a" * 64, row=row) for row in range(3))
TRIO = Contest("cat", (A, B, C))


def vote(left, right, answer, voter="0123abcd"):
    return Vote(run="r", voter=voter, number=0, left=left, right=right, answer=answer)


def test_wins_are_counted_from_either_side_and_ties_are_halves():
    votes = group_votes([vote(A, B, "left"), vote(B, A, "left", "1" * 8), vote(C, B, "tie"), vote(A, C, "skip")])
    assert count_wins(TRIO, votes).tolist() == [[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]]
    assert agreement(votes) == (0.0, 1)


def test_only_images_that_somebody_voted_on_have_a_score():
    scores = score_images([TRIO], group_votes([vote(A, B, "right")]))
    assert scores.keys() == {A, B}
    assert scores[B] == pytest.approx(-scores[A])
    assert scores[B] > 0


def test_a_pair_goes_to_the_majority_and_a_draw_to_nobody():
    three = [vote(A, B, "left"), vote(B, A, "left", "1" * 8), vote(B, A, "right", "2" * 8)]
    draw = [vote(A, C, "left"), vote(C, A, "left", "1" * 8), vote(B, C, "tie")]
    assert preferred_pairs([TRIO], group_votes(three + draw)) == [(A, B)]


def test_the_win_rate_is_a_mean_over_prompts():
    base = [ImageReference(record="b" * 64, row=row) for row in range(4)]
    new = [ImageReference(record="c" * 64, row=row) for row in range(4)]
    contests = [Contest("cat" if row < 3 else "dog", (base[row], new[row])) for row in range(4)]
    votes = group_votes(
        [
            vote(base[0], new[0], "right"),
            vote(new[1], base[1], "left"),
            vote(new[2], base[2], "left"),
            vote(new[3], base[3], "right"),
            vote(new[3], base[3], "tie", "1" * 8),
        ]
    )
    rate = win_rate(contests, votes, "c" * 64, "b" * 64)
    assert rate == WinRate((1 + 0.25) / 2, wilson_interval(0.625, 2), prompts=2, comparisons=5)
    assert rate.verdict() == "no clear difference"
    assert win_rate(contests, {}, "c" * 64, "b" * 64) is None
    turned = win_rate(contests, votes, "b" * 64, "c" * 64)
    assert turned.share == pytest.approx(0.375)


@pytest.mark.parametrize(("share", "words"), [(0.8, "preferred"), (0.2, "not preferred: the other is")])
def test_the_verdict_is_told_where_the_interval_excludes_half(share, words):
    assert WinRate(share, wilson_interval(share, 60), 60, 60).verdict() == words


def test_the_interval_holds_the_truth_as_often_as_it_says():
    # Of prompts whose images differ in how often they win, and several dependent votes on each.
    generator = np.random.default_rng(0)
    base = [ImageReference(record="b" * 64, row=row) for row in range(40)]
    new = [ImageReference(record="c" * 64, row=row) for row in range(40)]
    contests = [Contest(f"prompt {row}", (base[row], new[row])) for row in range(40)]
    held = 0
    for _ in range(200):
        chances = generator.beta(2, 1, 40)  # a mean of 2/3
        votes = [
            vote(new[row], base[row], "left" if generator.random() < chances[row] else "right", f"{voter:08x}")
            for row in range(40)
            for voter in range(3)
        ]
        low, high = win_rate(contests, group_votes(votes), "c" * 64, "b" * 64).interval
        held += low <= 2 / 3 <= high
    assert held >= 188  # 95 % of 200 are 190; fewer than 188 only if it were too narrow by a tenth
