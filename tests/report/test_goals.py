"""What a run is trained for, as one number an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_values
from reported_runs import MONITORED, REWARD, data_of, write_reported

from rlcm_cli.config.validation import parse_config
from rlcm_cli.report.run.data import RunData
from rlcm_cli.report.run.goals import Goal, find_goals
from rlcm_cli.runs.held_out import sum_by_task


@pytest.fixture
def data(tmp_path) -> RunData:
    return data_of(write_reported(tmp_path / "run", rollouts=0))


def trained_for(data: RunData, **sections) -> RunData:
    """The same run as if it had been trained for something else."""
    values = {**tiny_values("emoji-lcm"), **sections}
    config = parse_config({key: value for key, value in values.items() if value is not None})
    return replace(data, run=replace(data.run, run=replace(data.run.run, config=config)))


def test_the_weighted_sum_of_each_image_is_that_of_its_task(data):
    first = data.evaluations[-1]
    evaluation = replace(first, tasks=["a", "b", *["other"] * (len(first.tasks) - 2)])
    found = sum_by_task(evaluation, {"a": {REWARD: 2.0, MONITORED: -1.0}, "b": {REWARD: 1.0}})
    rewards, monitored = first.rewards[REWARD].astype(float), first.rewards[MONITORED].astype(float)
    assert found.dtype == np.float64
    assert found[:2].tolist() == [2 * rewards[0] - monitored[0], rewards[1]]
    assert np.isnan(found[2:]).all()
    assert np.isnan(sum_by_task(evaluation, {})).all()


def test_a_goal_is_of_its_own_task(data):
    evaluation = data.evaluations[-1]
    goal = Goal("both", "compression", {REWARD: 1.0, MONITORED: 3.0})
    expected = evaluation.rewards[REWARD].astype(float) + 3 * evaluation.rewards[MONITORED].astype(float)
    assert goal.values(evaluation).tolist() == expected.tolist()
    assert np.isnan(replace(goal, task="other").values(evaluation)).all()


def test_one_reward_needs_no_sum(data):
    assert find_goals(data) == []


def test_a_sum_has_the_weights_of_the_configuration(data):
    summed = trained_for(data, rewards={REWARD: 1.0, MONITORED: 2.0}, combine="sum")
    (goal,) = find_goals(summed)
    assert goal == Goal(f"{REWARD} + 2 × {MONITORED}", "compression", {REWARD: 1.0, MONITORED: 2.0})


def test_normalised_rewards_are_in_deviations_of_the_first_evaluation(data):
    (goal,) = find_goals(trained_for(data, rewards={REWARD: 1.0, MONITORED: 2.0}))
    deviation = data.evaluations[0].rewards[REWARD].astype(float).std()  # as the best checkpoint is chosen
    assert goal.name.endswith(", each in standard deviations")
    assert goal.weights == {REWARD: pytest.approx(1 / deviation), MONITORED: 2.0}  # the second has no deviation


def test_each_of_several_tasks_has_its_own(data):
    tasks = {name: {"rewards": {REWARD: 1.0, MONITORED: 1.0}, "combine": "sum"} for name in ("compression", "other")}
    joint = trained_for(data, rewards=None, tasks={**tasks, "single": {"rewards": {REWARD: 1.0}}})
    assert [goal.name for goal in find_goals(joint)] == [
        f"compression: {REWARD} + {MONITORED}",
        f"other: {REWARD} + {MONITORED}",
    ]


def test_without_the_values_of_every_reward_there_is_none(data):
    summed = trained_for(data, rewards={REWARD: 1.0, MONITORED: 2.0}, combine="sum")
    assert find_goals(replace(summed, evaluations=[])) == []
    lacking = replace(data.evaluations[0], rewards={REWARD: data.evaluations[0].rewards[REWARD]})
    assert find_goals(replace(summed, evaluations=[lacking, data.evaluations[-1]])) == []
