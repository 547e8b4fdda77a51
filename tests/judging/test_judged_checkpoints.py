"""What `rlcm evaluate` says of checkpoints: the numbers that the report has, and those of the same images only."""

from __future__ import annotations

import numpy as np
import pytest
from reported_runs import REWARD, data_of, write_reported

from rlcm_cli.judging.held_out import judge_checkpoints
from rlcm_cli.report.run.summary import find_changes
from rlcm_cli.store.evaluations import publish_rescored, read_evaluation


def test_the_numbers_are_those_of_the_report(tmp_path):
    layout = write_reported(tmp_path / "run", checkpoints=(0, 2, 4))
    judged = judge_checkpoints(layout, [4], [REWARD])
    (change,) = [one for one in find_changes(data_of(layout)) if one.held_out and one.reward == REWARD]
    before, after = judged["held_out"]
    assert (before.way, after.way, after.against) == ("0", "4", "0")
    assert before.estimate == change.before
    assert after.estimate == change.after
    assert after.difference == change.difference


def test_the_first_evaluation_is_what_others_are_compared_with(tmp_path):
    layout = write_reported(tmp_path / "run", checkpoints=(0, 2, 4))
    judged = judge_checkpoints(layout, [2, 4], [REWARD, "none"])
    assert [(one.way, one.reward) for one in judged["all"]] == [(way, REWARD) for way in ("0", "2", "4")]
    assert judge_checkpoints(write_reported(tmp_path / "bare", checkpoints=()), [], [REWARD]) == {}


def test_scores_of_another_version_are_not_compared(tmp_path):
    layout = write_reported(tmp_path / "run", checkpoints=(0, 2))
    for number, revision in ((0, "old"), (2, "new")):
        found = read_evaluation(layout, number, images=False)
        publish_rescored(layout, found, {"x": np.ones(len(found.seed), np.float32)}, {"x": revision})
    (only,) = judge_checkpoints(layout, [0, 2], ["x"])["all"]
    assert (only.way, only.wins) == ("2", None)
    assert only.estimate.mean == pytest.approx(1.0)
