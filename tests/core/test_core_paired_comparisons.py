"""Scores and intervals against the published packages: tables of choix 0.4.1 and statsmodels 0.15.0."""

from __future__ import annotations

import numpy as np
import pytest

from rlcm_cli.core.paired_comparisons import fit_scores, wilson_interval

FIVE = "12 03 34 14 12 02 34 24 10 14 12 03 12 03 13 02 01 24 13 23 24 14 34 12 24 03 24 24 01 01"
EIGHT = (
    "25 23 03 46 16 01 24 15 36 47 56 02 27 35 67 27 13 54 16 46 45 26 36 37 06 35 10 04 34 26 47 04 21 16 01 06 02 "
    "34 47 06 14 46 05 03 25 62 02 40 37 13 35 52 16 23 74 56 64 56 05 67"
)
CHOIX = [
    (3, 1.0, "12 20 02 12", [-0.137442, 0.551519, -0.414077]),
    (3, 3.0, "12 20 02 12", [-0.689287, 1.532049, -0.842762]),
    (5, 1.0, FIVE, [1.438815, 1.049623, -0.142582, -0.548952, -1.796903]),
    (5, 3.0, FIVE, [3.046879, 2.216476, -0.243349, -1.273402, -3.746604]),
    (8, 1.0, EIGHT, [1.430206, 0.914011, 0.531901, 0.310959, -0.338025, -0.36853, -1.071657, -1.408865]),
    (8, 3.0, EIGHT, [2.241967, 1.582718, 0.82376, 0.474966, -0.660996, -0.464354, -1.514498, -2.483562]),
]
"""`choix.opt_pairwise(K, pairs, alpha=1 / (2 std²))`."""


def count(size: int, pairs: str) -> np.ndarray:
    wins = np.zeros((size, size))
    for winner, loser in pairs.split():
        wins[int(winner), int(loser)] += 1
    return wins


@pytest.mark.parametrize(("size", "std", "pairs", "expected"), CHOIX)
def test_scores_are_those_of_choix(size, std, pairs, expected):
    np.testing.assert_allclose(fit_scores(count(size, pairs), std), expected, atol=2e-6)


def test_who_always_wins_has_a_finite_score_and_ties_alone_leave_all_equal():
    never = fit_scores(np.triu(np.full((4, 4), 500.0), 1))
    assert np.isfinite(never).all()
    assert (np.diff(never) < 0).all()
    ties = np.full((3, 3), 0.5) - np.diag([0.5] * 3)
    assert fit_scores(ties).tolist() == [0, 0, 0]
    assert fit_scores(np.zeros((2, 2))).tolist() == [0, 0]
    assert fit_scores(np.zeros((0, 0))).tolist() == []


def test_the_fit_is_where_the_gradient_is_zero_also_for_many_votes():
    wins = np.random.default_rng(0).integers(0, 10_000, (12, 12)) * np.random.default_rng(1).random((12, 12)) ** 6
    np.fill_diagonal(wins, 0)
    scores = fit_scores(wins)
    chances = 1 / (1 + np.exp(scores[None] - scores[:, None]))
    gradient = ((wins + wins.T) * chances - wins).sum(1) + scores
    assert np.abs(gradient).max() < 1e-9 * wins.sum()
    assert abs(scores.sum()) < 1e-9


@pytest.mark.parametrize(
    ("share", "trials", "expected"),
    [
        (0.5, 10, (0.23659309, 0.76340691)),
        (1.0, 7, (0.64566956, 1.0)),
        (0.0, 1, (0.0, 0.79345069)),
        (0.714, 45, (0.56932385, 0.82501326)),
        (0.02, 200, (0.00780443, 0.05028709)),
    ],
)
def test_intervals_are_those_of_statsmodels(share, trials, expected):
    assert wilson_interval(share, trials) == pytest.approx(expected, abs=1e-8)
