"""The interval of a mean over seeds, and that of a share, beside those of scipy and statsmodels on random data."""

import json
import statistics
from pathlib import Path

import pytest

from rlcm_cli.core.paired_comparisons import wilson_interval
from rlcm_cli.core.seed_interval import mean_interval, t_quantile

KNOWN = json.loads((Path(__file__).parents[1] / "data/intervals.json").read_text(encoding="utf-8"))


def test_intervals_of_means_are_those_of_scipy():
    for row in KNOWN["means"]:
        assert mean_interval(row["values"], row["confidence"]) == pytest.approx(tuple(row["interval"]), rel=1e-9)


def test_intervals_of_shares_are_those_of_statsmodels():
    for row in KNOWN["shares"]:
        found = wilson_interval(row["wins"] / row["trials"], row["trials"], row["confidence"])
        assert found == pytest.approx(tuple(row["interval"]), abs=1e-9)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (30, 2.0422725), (1000, 1.9623391)]
)
def test_quantiles_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-7)
    assert t_quantile(0.5, degrees) == pytest.approx(0, abs=1e-12)


def test_a_mean_lies_within_its_interval_and_one_value_has_none():
    assert mean_interval([3.0]) is None
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    low, high = mean_interval([0.878, 0.8748])
    assert low < statistics.fmean([0.878, 0.8748]) < high
