"""Shares, batch sizes and projections, by hand."""

import pytest

from rlcm_cli.core.throughput import (
    UnitCosts,
    Work,
    choose_batch,
    largest_that_fits,
    project_seconds,
    share_of_peak,
    sweep_batches,
)


def test_a_projection_is_the_sum_of_all_work():
    costs = UnitCosts(call=1.0, decode=10.0, reward=100.0, transition=1000.0)
    assert project_seconds(Work(images=3, calls=8, transitions=21), costs) == 3 * (8 + 10 + 100) + 21_000


def test_the_issue_s_floor_is_what_the_share_of_the_peak_says():
    """20 TFLOP in 0.026 s on an H200: all of its 790 TFLOP/s, nearly."""
    assert share_of_peak(20e12, 0.026, 790e12) == pytest.approx(0.974, abs=1e-3)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({1: 10.0}, 1),
        ({1: 10.0, 2: 19.0, 4: 30.0}, 4),
        ({1: 10.0, 2: 19.0, 4: 20.8}, 2),  # within a tenth
        ({1: 10.0, 2: 19.0, 4: 20.91}, 4),  # not within
        ({1: 10.0, 2: 5.0}, 1),
    ],
)
def test_the_smallest_batch_that_is_nearly_the_fastest_is_chosen(rates, chosen):
    assert choose_batch(rates) == chosen


def swept(rates, wanted=None):
    asked = []

    def measure(batch):
        asked.append(batch)
        return rates.get(batch)

    return list(sweep_batches(measure, wanted)), asked


def test_a_sweep_doubles_until_it_no_longer_pays():
    assert swept({1: 1.0, 2: 2.0, 4: 4.0, 8: 4.1, 16: 4.2, 32: 99.0})[0] == [1, 2, 4, 8, 16]


def test_a_single_size_out_of_line_does_not_end_a_sweep():
    assert swept({1: 1.0, 2: 2.0, 4: 0.1, 8: 8.0, 16: 8.0, 32: 8.0, 64: 99.0})[0] == [1, 2, 4, 8, 16, 32]


def test_a_sweep_ends_where_memory_does():
    assert swept({1: 1.0, 2: 2.0}) == ([1, 2], [1, 2, 4])
    assert swept({}) == ([], [1])


def test_a_sweep_of_given_sizes_measures_them_all():
    assert swept({3: 5.0, 7: 1.0, 2: 1.0}, [3, 7, 2]) == ([3, 7, 2], [3, 7, 2])
    assert swept({3: 5.0}, [3, 7, 2]) == ([3], [3, 7])


@pytest.mark.parametrize("limit", [1, 2, 5, 64])
def test_the_largest_size_that_fits_is_found_by_asking_each_at_most_once(limit):
    for boundary in range(limit + 3):
        asked = []

        def fits(size, boundary=boundary, asked=asked):
            asked.append(size)
            return size <= boundary

        assert largest_that_fits(fits, limit) == min(boundary, limit)
        assert len(set(asked)) == len(asked) <= 13
        assert all(1 <= size <= limit for size in asked)
