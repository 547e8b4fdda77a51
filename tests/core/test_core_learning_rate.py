import math

import pytest

from rlcm_cli.core.learning_rate import DECAYS, learning_rate


def rates(count, base=1.0, *, warmup=0, schedule="linear", decay_iterations=0, decay_every=1):
    return [
        learning_rate(
            base,
            iteration,
            warmup=warmup,
            schedule=schedule,
            decay_iterations=decay_iterations,
            decay_every=decay_every,
        )
        for iteration in range(count)
    ]


@pytest.mark.parametrize(("length", "every"), [(4, 1), (6, 2), (3000, 10), (2124, 6), (7, 3)])
def test_linear_is_the_published_codes_decay_to_the_bit(length, every):
    # LinearLR of torch from 1 to 0, stepped before the first epoch and then once an epoch.
    expected = [3e-4 * max(0.0, 1 - (iteration // every + 1) * every / length) for iteration in range(3100)]
    assert rates(3100, 3e-4, decay_iterations=length, decay_every=every) == expected


def test_linear_by_hand():
    assert rates(6, decay_iterations=4) == [0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    assert rates(7, decay_iterations=6, decay_every=2) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, 0, 0, 0])


def test_rlcm_s_first_and_last_epochs_are_the_published_ones():
    published = rates(1000, decay_iterations=3000, decay_every=10)
    assert published[:10] == pytest.approx([0.99667] * 10, abs=1e-5)
    assert published[990:] == pytest.approx([0.66667] * 10, abs=1e-5)


def test_cosine_is_half_a_wave_and_stays_at_0():
    expected = [2 * math.cos(math.pi * iteration / 16) ** 2 for iteration in range(1, 9)]
    assert rates(8, 2.0, schedule="cosine", decay_iterations=8) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert rates(40, schedule="cosine", decay_iterations=8)[7:] == [0.0] * 33
    assert rates(8, schedule="cosine", decay_iterations=8, decay_every=4) == pytest.approx([0.5] * 4 + [0.0] * 4)


@pytest.mark.parametrize("schedule", DECAYS)
def test_without_iterations_of_decay_the_rate_stays(schedule):
    assert rates(50, 0.3, schedule=schedule) == [0.3] * 50


def test_constant_stays_whatever_the_iterations_of_decay():
    assert rates(50, 0.3, schedule="constant", decay_iterations=8) == [0.3] * 50


@pytest.mark.parametrize("schedule", DECAYS)
def test_the_warm_up_climbs_from_above_0_and_the_decay_follows_it(schedule):
    warm = rates(24, 2.0, warmup=4, schedule=schedule, decay_iterations=10, decay_every=2)
    assert warm[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert warm[4:] == rates(20, 2.0, schedule=schedule, decay_iterations=10, decay_every=2)
    assert warm[3] < 2.0
    assert warm[4:6] == [warm[4]] * 2 == pytest.approx([2.0 * DECAYS[schedule](0.2)] * 2)
