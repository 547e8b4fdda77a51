"""What the fixed images of a run's evaluations say: which checkpoint is the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reported_runs import write_evaluation, write_reported

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.runs import held_out
from rlcm_cli.runs.held_out import (
    HeldOutRewards,
    best_held_out,
    estimate_images,
    find_flat,
    measure_held_out,
    measure_reward,
    read_held_out,
)
from rlcm_cli.store.evaluations import Evaluation, read_evaluation

NAN = float("nan")


def make_config(**sections: Any):
    return parse_config({"task": "compression", "model": {"name": "tiny"}, **sections})


def make_evaluation(checkpoint: int, tasks: tuple[str, ...] = ("compression",), **rewards: list[float]) -> Evaluation:
    count = len(next(iter(rewards.values())))
    return Evaluation(
        checkpoint=checkpoint,
        policy_digest="",
        images=np.zeros(0, np.uint8),
        prompts=["cat"] * count,
        tasks=[tasks[image % len(tasks)] for image in range(count)],
        seed=np.arange(count),
        held_out=np.zeros(count, bool),
        rewards={name: np.array(values, np.float32) for name, values in rewards.items()},
    )


def test_of_one_reward_the_highest_mean_is_the_best():
    config = make_config(rewards={"sharpness": 1.0})
    given = [make_evaluation(number, sharpness=[mean - 1, mean + 1]) for number, mean in ((0, 1), (5, 4), (10, 3))]
    reached = measure_held_out(given, config)
    assert [*reached] == [0, 5, 10]
    assert best_held_out(reached) == 5


def test_a_reward_with_a_negative_weight_counts_the_other_way():
    config = make_config(rewards={"sharpness": -1.0})
    assert best_held_out(measure_held_out([make_evaluation(n, sharpness=[n, n + 1]) for n in range(3)], config)) == 0


@pytest.mark.parametrize(("combine", "best"), [("sum", 1), ("normalised", 2)])
def test_the_largest_unit_decides_only_where_rewards_are_summed(combine, best):
    config = make_config(rewards={"sharpness": 1.0, "brightness": 1.0}, combine=combine)
    given = [
        make_evaluation(0, sharpness=[0, 200], brightness=[0, 2]),
        make_evaluation(1, sharpness=[50, 250], brightness=[-1, 1]),  # +50 of a spread of 100, -1 of a spread of 1
        make_evaluation(2, sharpness=[0, 200], brightness=[1, 3]),  # +1 of a spread of 1
    ]
    assert best_held_out(measure_held_out(given, config)) == best


def test_the_images_of_each_task_count_by_its_own_rewards():
    tasks = {"one": {"rewards": {"sharpness": 1.0}}, "two": {"rewards": {"brightness": 2.0}}}
    config = make_config(tasks={name: {**task, "combine": "sum"} for name, task in tasks.items()})
    given = make_evaluation(3, ("one", "two"), sharpness=[1, NAN, 3, NAN], brightness=[NAN, 5, NAN, 7])
    given = replace(given, prompts=["cat", "dog"] * 2)
    assert measure_held_out([given], config) == {3: (2.0 + 2 * 6.0) / 2}


def test_each_prompt_counts_once_however_many_of_its_images_are_known():
    found = replace(make_evaluation(0, votes=[1.0, 3.0, 6.0, NAN]), prompts=["cat", "cat", "dog", "dog"])
    assert measure_held_out([found], make_config(rewards={"votes": 1.0}, combine="sum")) == {0: 4.0}  # of 2 and 6
    assert measure_reward([found], "votes") == {0: 4.0}
    known = estimate_images(found, found.rewards["votes"])
    assert (known.mean, known.error, known.prompts) == (4.0, 2.0, 2)
    assert estimate_images(found, found.rewards["votes"], np.array([True, False, False, True])).mean == 1.0
    assert estimate_images(found, found.rewards["votes"], np.array([False, False, False, True])) is None


def test_an_image_without_one_of_the_rewards_of_its_sum_does_not_count():
    found = make_evaluation(0, votes=[1.0, NAN, 3.0], sharpness=[10.0, 20.0, 30.0])
    config = make_config(rewards={"votes": 1.0, "sharpness": 0.5}, combine="sum")
    assert measure_held_out([found], config) == {0: (6.0 + 18.0) / 2}


def test_an_evaluation_without_a_trained_reward_is_left_out_and_one_is_no_choice():
    config = make_config(rewards={"sharpness": 1.0})
    reached = measure_held_out([make_evaluation(0, sharpness=[1.0]), make_evaluation(1, other=[9.0])], config)
    assert reached == {0: 1.0}
    assert best_held_out(reached) is None
    assert best_held_out({}) is None


def test_it_is_read_from_the_files_of_a_run_and_again_only_when_there_are_more(tmp_path, monkeypatch):
    layout = write_reported(tmp_path / "run", checkpoints=(0, 2))
    config = make_config(rewards={"compressibility": 1.0}, combine="sum")
    means = {n: float(read_evaluation(layout, n).rewards["compressibility"].mean()) for n in (0, 2)}
    assert read_held_out(layout, config) == pytest.approx(means)
    calls = []
    monkeypatch.setattr(held_out, "read_held_out", lambda *_: calls.append(1) or means)
    rewards = HeldOutRewards(layout, config)
    assert (rewards.best(), rewards.best(), len(calls)) == ({2}, {2}, 1)
    write_evaluation(layout, 4)
    rewards.reached()
    assert len(calls) == 2


def test_its_images_need_not_be_read(tmp_path):
    layout = write_reported(tmp_path / "run", checkpoints=(0,))
    whole, light = read_evaluation(layout, 0), read_evaluation(layout, 0, images=False)
    assert whole.images.ndim == 4
    assert light.images.size == 0
    assert light.prompts == whole.prompts
    assert {name: values.tolist() for name, values in light.rewards.items()} == {
        name: values.tolist() for name, values in whole.rewards.items()
    }


@pytest.mark.parametrize(
    ("reached", "found"),
    [
        ([1.0, 2.0, 3.0, 4.0], None),
        ([4.0, 3.0], None),
        ([4.0, 3.0, 3.5], (0, 2)),
        ([1.0, 3.0, 2.0, 2.9], (10, 2)),
        ([1.0, 3.0, 3.0, 3.0], (10, 2)),  # as good is no rise
        ([1.0, 3.0, 2.0, 3.1], None),
        ([1.0, 3.0, 2.0, 2.0, 2.0], (10, 3)),
        ([1.0], None),
        ([], None),
    ],
)
def test_a_run_is_flat_where_no_evaluation_was_better_for_long(reached, found):
    config = make_config(rewards={"sharpness": 1.0}, evaluate={"every": 10}, runtime={"stop_when_flat": 2})
    assert find_flat({10 * index: value for index, value in enumerate(reached)}, config) == found


def test_only_the_evaluations_that_the_settings_ask_for_count():
    config = make_config(rewards={"sharpness": 1.0}, evaluate={"every": 10}, runtime={"stop_when_flat": 2})
    assert find_flat({0: 1.0, 10: 2.0, 11: 1.0, 12: 1.0, 20: 1.5}, config) is None
    assert find_flat({0: 2.0, 9: 7.0, 10: 1.0, 20: 1.5}, config) == (0, 2)
    assert find_flat({0: 2.0, 10: 1.0, 20: 1.5}, make_config(rewards={"sharpness": 1.0})) is None


def test_of_people_s_votes_the_images_count_that_somebody_voted_on():
    config, nobody = make_config(rewards={"votes": 1.0}), float("nan")
    found = [
        make_evaluation(0, votes=[nobody, 0.5, nobody, -1.5]),
        make_evaluation(2, votes=[nobody] * 4),
        make_evaluation(4, votes=[0.5, 0.5, nobody, nobody]),
        make_evaluation(6, sharpness=[1.0] * 4),
    ]
    assert measure_held_out(found, config) == pytest.approx({0: -0.5, 4: 0.5})


def test_a_late_listing_does_not_hide_the_newest_evaluation(tmp_path, monkeypatch):
    layout = write_reported(tmp_path / "run", checkpoints=(0, 2))
    rewards = HeldOutRewards(layout, make_config(rewards={"compressibility": 1.0}))
    monkeypatch.setattr(type(layout), "evaluations", lambda self: [0])
    assert [*rewards.reached(2)] == [0, 2]


def test_without_evaluations_between_it_is_refused():
    with pytest.raises(ConfigError, match=r"runtime.stop_when_flat counts evaluations.*--set evaluate.every=10"):
        make_config(rewards={"sharpness": 1.0}, runtime={"stop_when_flat": 2})
