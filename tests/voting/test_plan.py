"""Which pairs a voter is shown: balanced from the first to the last, and in no order that tells anything."""

from __future__ import annotations

from collections import Counter

import pytest

from rlcm_cli.store.votes import ImageReference
from rlcm_cli.voting.contests import Contest
from rlcm_cli.voting.plan import pair_ring, plan_pairs


def contest(number: int, size: int) -> Contest:
    images = tuple(ImageReference(record=f"{number:064x}", row=row) for row in range(size))
    return Contest(f"prompt {number}", images)


@pytest.mark.parametrize("size", range(2, 8))
def test_of_up_to_seven_images_all_pairs_are_shown_once(size):
    pairs = [pair.images for pair in plan_pairs([contest(0, size)], seed=1)]
    assert len(pairs) == len({*pairs}) == size * (size - 1) // 2
    assert {len(pair) for pair in pairs} == {2}


@pytest.mark.parametrize("size", [8, 16, 33])
def test_of_more_images_each_is_in_as_many_pairs(size):
    pairs = [pair.images for pair in plan_pairs([contest(0, size)], seed=1)]
    assert len(pairs) == len({*pairs}) < size * (size - 1) // 2
    assert len({*Counter(image for pair in pairs for image in pair).values()}) == 1


@pytest.mark.parametrize("size", [0, 1])
def test_one_image_has_no_pair(size):
    assert list(pair_ring(size)) == []


def test_whoever_stops_early_has_seen_each_image_as_often():
    contests = [contest(number, 5) for number in range(6)]
    pairs = plan_pairs(contests, seed=3)
    first_round = Counter(image for pair in pairs[:30] for image in (pair.left, pair.right))
    assert {*first_round.values()} == {2}
    assert len(first_round) == 30
    assert [pair.prompt for pair in pairs[:30]] != sorted(pair.prompt for pair in pairs[:30])


def test_the_same_voter_sees_the_same_pairs_and_another_one_others():
    contests = [contest(number, 4) for number in range(10)]
    assert plan_pairs(contests, 5) == plan_pairs(contests, 5)
    assert plan_pairs(contests, 5) != plan_pairs(contests, 6)


def test_sides_are_drawn():
    contests = [contest(number, 2) for number in range(400)]
    left = sum(pair.left.row == 0 for pair in plan_pairs(contests, 0))
    assert 150 < left < 250  # five standard deviations
