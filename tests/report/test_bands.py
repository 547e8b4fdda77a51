"""The band around a mean reward."""

from __future__ import annotations

import math

import pytest

from rlcm_cli.report.run.bands import FREE, band


@pytest.mark.parametrize(
    ("mean", "spread", "bounds", "ends"),
    [
        (1.0, 0.5, FREE, (0.5, 1.5)),
        (-0.25, 0.5, (-math.inf, 0.0), (-0.75, 0.0)),
        (0.25, 0.5, (0.0, math.inf), (0.0, 0.75)),
        (0.5, 2.0, (0.0, 1.0), (0.0, 1.0)),
        (0.0, 0.0, (0.0, 1.0), (0.0, 0.0)),
        # A mean that is out of bounds, as rounding or a wrong bound makes it, is in its own band.
        (-0.1, 0.5, (0.0, 1.0), (-0.1, 0.4)),
        (1.2, 0.1, (0.0, 1.0), (1.0999999999999999, 1.2)),
        (2.0, 0.1, (0.0, 1.0), (1.9, 2.0)),
    ],
)
def test_a_band_is_a_deviation_wide_within_bounds_and_holds_its_mean(mean, spread, bounds, ends):
    assert band(mean, spread, bounds) == pytest.approx(ends)
    low, high = band(mean, spread, bounds)
    assert low <= mean <= high
