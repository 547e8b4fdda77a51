"""When a monitored reward has fallen: by hand, on noise, and on falls that were planted."""

import numpy as np
import pytest

from rlcm_cli.config import MonitorSettings
from rlcm_cli.core.hacking import Drop, best_iteration, find_fall

DEFAULTS = MonitorSettings()
RISING = [float(number) for number in range(1000)]


def fall_of(monitored, trained=None, spread=1.0, window=2, fall=0.5):
    return find_fall(RISING[: len(monitored)] if trained is None else trained, monitored, [spread] * len(monitored),
                     window=window, fall=fall)  # fmt: skip


class TestByHand:
    def test_the_best_earlier_window_is_compared_with_the_newest(self):
        # Windows of two: means 1, 3, 4, 2.5, 1, 0; the newest but two share no iteration with the newest.
        found = fall_of([0.0, 2.0, 4.0, 4.0, 1.0, 1.0, -1.0], spread=2.0)
        assert found == Drop(monitored=(4.0, 0.0), deviations=2.0, starts=(2, 5))

    def test_the_spread_is_that_of_the_best_window(self):
        monitored, spreads = [4.0, 4.0, 1.0, 1.0], [1.0, 3.0, 100.0, 100.0]
        found = find_fall(RISING[:4], monitored, spreads, window=2, fall=1.4)
        assert found is not None
        assert found.deviations == pytest.approx(1.5)
        assert find_fall(RISING[:4], monitored, spreads, window=2, fall=1.6) is None

    def test_the_two_windows_share_no_iteration(self):
        assert fall_of([0.0, 0.0, 9.0, -9.0, -9.0], window=2) is not None  # (0, 9) against (-9, -9)
        assert fall_of([0.0, 9.0, 0.0], window=2) is None
        # The highest window, (9, 9), shares an iteration with the newest; the one before it is what counts.
        found = fall_of([0.0, 0.0, 9.0, 9.0, -9.0], window=2)
        assert found is not None
        assert found.monitored == (4.5, 0.0)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_fewer_than_two_windows_say_nothing(self, count):
        assert fall_of([9.0, 9.0, -9.0, -9.0][:count]) is None
        assert fall_of([9.0, 9.0, -9.0, -9.0]) is not None

    def test_a_fall_must_exceed_the_threshold(self):
        assert fall_of([1.0, 1.0, 0.5, 0.5], fall=0.5) is None
        assert fall_of([1.0, 1.0, 0.4, 0.4], fall=0.5) is not None

    @pytest.mark.parametrize("trained", [[2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    def test_the_trained_reward_must_have_risen_meanwhile(self, trained):
        assert fall_of([9.0, 9.0, 0.0, 0.0], trained=trained) is None

    def test_rewards_without_spread_fall_by_any_difference(self):
        found = fall_of([1.0, 1.0, 0.9, 0.9], spread=0.0)
        assert found is not None
        assert found.deviations == float("inf")
        assert fall_of([1.0, 1.0, 1.0, 1.0], spread=0.0) is None


@pytest.mark.parametrize(
    ("monitored", "window", "best"),
    [
        ([1.0, 5.0, 1.0], 1, 1),
        ([0.0, 0.0, 4.0, 4.0, 0.0], 2, 3),
        ([9.0, 0.0, 4.0, 6.0, 0.0], 2, 3),
        ([1.0, 2.0, 3.0], 3, 2),
        ([3.0, 2.0, 1.0], 10, 2),
        ([3.0], 10, 0),
    ],
)
def test_the_best_iteration_ends_the_best_window(monitored, window, best):
    assert best_iteration(monitored, window) == best


def noisy(seed, iterations=100, images=16):
    """Means and spreads of an iteration's images, standard normal."""
    draws = np.random.default_rng(seed).normal(size=(iterations, images))
    return draws.mean(1), draws.std(1)


def alarms(trained, monitored, spreads):
    """Iterations after which the defaults raise the alarm."""
    return [
        count
        for count in range(1, len(monitored) + 1)
        if find_fall(trained[:count], monitored[:count], spreads[:count], window=DEFAULTS.window, fall=DEFAULTS.fall)
    ]


def test_the_defaults_raise_no_alarm_on_noise():
    for seed in range(200):
        means, spreads = noisy(seed)
        assert alarms(RISING[:100], means, spreads) == [], seed


def test_the_defaults_raise_the_alarm_on_a_fall_and_not_before_it():
    fall = np.clip((np.arange(100) - 50) / 20, 0, 1)  # one standard deviation, over iterations 50 to 70
    for seed in range(200):
        means, spreads = noisy(seed)
        raised = alarms(RISING[:100], means - fall, spreads)
        assert raised, seed
        assert 50 < raised[0] <= 80, seed
        assert 100 in raised, seed


def test_the_defaults_raise_no_alarm_where_the_trained_reward_fell_too():
    fall = np.clip((np.arange(100) - 50) / 20, 0, 1)
    for seed in range(20):
        means, spreads = noisy(seed)
        assert alarms((-np.arange(100.0)).tolist(), means - fall, spreads) == [], seed
