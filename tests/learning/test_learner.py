"""What an optimizer step measures, added up over its parts and averaged over an iteration."""

import math

import pytest

from rlcm_cli.learning.learner import LARGEST, UpdateMetrics, average_metrics


def test_parts_count_by_their_share_and_of_the_drift_the_largest():
    record = UpdateMetrics()
    record.add(0.75, {"loss": 4.0, LARGEST: 1e-6})
    record.add(0.25, {"loss": 8.0, LARGEST: 3e-6})
    record.add(1, {"pretraining_loss": 2.0})
    assert record.values == {"loss": 5.0, LARGEST: 3e-6, "pretraining_loss": 2.0}


@pytest.mark.parametrize("drifts", [(math.nan, 1.0), (1.0, math.nan)])
def test_a_drift_that_is_not_a_number_is_not_dropped(drifts):
    record = UpdateMetrics()
    for drift in drifts:
        record.add(0.5, {LARGEST: drift})
    assert math.isnan(record.values[LARGEST])


def test_steps_are_averaged_but_for_the_drift():
    records = [UpdateMetrics({"loss": loss, LARGEST: 1.0}) for loss in (1.0, 2.0, 6.0)]
    assert average_metrics(records) == {"loss": 3.0}
    assert average_metrics([]) == {}
