"""PPO's own: a clip range, and old log-probabilities."""

import pytest
from pydantic import ValidationError

from rlcm_cli.objectives import Need
from rlcm_cli.objectives.ppo import OBJECTIVE, PpoSettings


def test_its_clip_range_is_the_papers_unless_it_is_set():
    assert OBJECTIVE.clip_range(PpoSettings()) == 1e-4
    assert OBJECTIVE.clip_range(PpoSettings(clip_range=0.2)) == 0.2
    assert "clip_fraction" in {metric.name for metric in OBJECTIVE.metrics}
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(ValidationError):
            PpoSettings(clip_range=wrong)


def test_it_corrects_for_other_policies():
    assert OBJECTIVE.needs == {Need.ACTIONS, Need.OLD_LOG_PROBS}
