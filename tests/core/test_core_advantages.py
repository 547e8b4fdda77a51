import json
from pathlib import Path

import numpy as np
import pytest

from rlcm_cli.core.advantages import (
    ADVANTAGES,
    Deviation,
    batch_advantages,
    combine_advantages,
    group_advantages,
    leave_one_out_advantages,
    per_prompt_advantages,
)

TABLE = Path(__file__).parent.parent / "data" / "parity" / "per_prompt_stats.json"


def test_advantages_equal_the_reference_code_exactly():
    table = json.loads(TABLE.read_text())
    statistics = {}
    for batch in table["batches"]:
        advantages, statistics = per_prompt_advantages(
            batch["prompts"],
            batch["rewards"],
            statistics,
            buffer_size=table["buffer_size"],
            min_count=table["min_count"],
        )
        assert advantages.dtype == np.float64
        assert advantages.tolist() == batch["advantages"]
    # The table goes through every branch: full buffers, and prompts below the minimum.
    kept = [len(rewards) for rewards in statistics.values()]
    assert max(kept) == table["buffer_size"]
    assert any(batch["prompts"].count("p4") < table["min_count"] for batch in table["batches"][:1])


def test_statistics_survive_a_file():
    def run(through_json):
        statistics = {}
        for batch in json.loads(TABLE.read_text())["batches"]:
            advantages, statistics = per_prompt_advantages(
                batch["prompts"], batch["rewards"], statistics, buffer_size=16, min_count=4
            )
            if through_json:
                statistics = {name: tuple(kept) for name, kept in json.loads(json.dumps(statistics)).items()}
        return advantages.tolist(), statistics

    assert run(True) == run(False)


def test_a_prompt_below_the_minimum_takes_the_statistics_of_the_batch():
    prompts, rewards = ["a", "a", "b", "b"], [1.0, 3.0, 10.0, 30.0]
    advantages, statistics = per_prompt_advantages(prompts, rewards, {"a": (5.0,)}, buffer_size=3, min_count=3)
    assert statistics == {"a": (5.0, 1.0, 3.0), "b": (10.0, 30.0)}
    a, batch = np.array([5.0, 1.0, 3.0]), np.array(rewards)
    expected = [
        (1.0 - a.mean()) / (a.std() + 1e-6),
        (3.0 - a.mean()) / (a.std() + 1e-6),
        (10.0 - batch.mean()) / (batch.std() + 1e-6),
        (30.0 - batch.mean()) / (batch.std() + 1e-6),
    ]
    assert advantages.tolist() == expected


def test_the_newest_rewards_of_a_prompt_are_kept_and_no_argument_is_changed():
    before = {"a": (1.0, 2.0), "other": (7.0,)}
    _, after = per_prompt_advantages(["a", "a"], [3.0, 4.0], before, buffer_size=3, min_count=1)
    assert after == {"a": (2.0, 3.0, 4.0), "other": (7.0,)}
    assert before == {"a": (1.0, 2.0), "other": (7.0,)}


@pytest.mark.parametrize("min_count", [1, 16])
def test_equal_rewards_have_no_advantage(min_count):
    advantages, _ = per_prompt_advantages(["a"] * 4, [2.5] * 4, {}, buffer_size=16, min_count=min_count)
    assert advantages.tolist() == [0.0] * 4


def test_the_offset_of_a_prompt_does_not_matter():
    rewards = np.array([1.0, 2.0, 4.0])
    advantages, _ = per_prompt_advantages(
        ["a"] * 3 + ["b"] * 3, [*rewards, *(rewards + 1000)], {}, buffer_size=8, min_count=2
    )
    np.testing.assert_allclose(advantages[:3], advantages[3:], rtol=1e-9)


def test_a_single_reward_keeps_its_advantages_exactly_whatever_its_positive_weight():
    advantages = np.random.default_rng(0).normal(size=50)
    for weight in (1.0, 2.0, 0.2, 0.1, 3e-4, 12345.678, *np.random.default_rng(1).uniform(1e-3, 1e3, 50)):
        assert combine_advantages({"a": advantages}, {"a": float(weight)}).tolist() == advantages.tolist()
        assert combine_advantages({"a": advantages}, {"a": -float(weight)}).tolist() == (-advantages).tolist()


def test_several_rewards_are_added_by_weight_over_the_norm_of_the_weights():
    advantages = {"a": np.array([1.0, -1.0, 0.0]), "b": np.array([2.0, 0.5, -4.0])}
    combined = combine_advantages(advantages, {"a": 3.0, "b": -4.0})
    np.testing.assert_allclose(combined, [(3 - 8) / 5, (-3 - 2) / 5, 16 / 5], rtol=1e-12)


def test_scaling_all_weights_changes_nothing_and_a_weight_of_0_takes_a_reward_out():
    advantages = {"a": np.array([1.0, -1.0, 0.3]), "b": np.array([2.0, 0.5, -4.0])}
    np.testing.assert_allclose(
        combine_advantages(advantages, {"a": 0.6, "b": 0.2}),
        combine_advantages(advantages, {"a": 3.0, "b": 1.0}),
        rtol=1e-12,
    )
    assert combine_advantages(advantages, {"a": 7.0, "b": 0.0}).tolist() == advantages["a"].tolist()


def test_independent_rewards_keep_their_variance():
    draws = np.random.default_rng(0).normal(size=(3, 200_000))
    combined = combine_advantages(dict(zip("abc", draws, strict=True)), {"a": 1.0, "b": 0.3, "c": -2.0})
    assert combined.std() == pytest.approx(1.0, abs=0.01)


PROMPTS, GROUPS = ["a", "b", "a", "b", "a", "b", "a", "a"], [7, 2, 7, 2, 7, 2, 9, 9]
REWARDS = [1.0, 10.0, 2.0, 40.0, 6.0, 10.0, 5.0, 8.0]
SIZES = {"buffer_size": 16, "min_count": 4}


def advantages_of(function, rewards, groups=GROUPS):
    before = {"a": (1.0, 2.0)}
    advantages, after = function(PROMPTS, rewards, before, groups=groups, **SIZES)
    assert advantages.dtype == np.float64
    assert advantages.shape == (len(rewards),)
    assert before == {"a": (1.0, 2.0)}
    if function is not per_prompt_advantages:
        assert after == before
    return advantages.tolist()


def by_group(function):
    """Apply a function of the rewards of a group, and give each sample its value."""
    values, groups = np.array(REWARDS), np.array(GROUPS)
    result = np.empty(len(REWARDS))
    for group in set(GROUPS):
        result[groups == group] = function(values[groups == group])
    return result


def test_batch_advantages_by_hand():
    values = np.array(REWARDS)
    expected = (values - values.mean()) / (values.std() + 1e-6)
    assert advantages_of(batch_advantages, REWARDS) == pytest.approx(expected, rel=1e-12)


def test_group_advantages_by_hand():
    # The deviation is divided by K − 1, as in DanceGRPO and TRL.
    expected = by_group(lambda values: (values - values.mean()) / (values.std(ddof=1) + 1e-6))
    assert advantages_of(group_advantages, REWARDS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("correction", [0, 1])
def test_the_divisor_of_the_deviation_can_be_chosen(correction):
    deviation = Deviation(correction=correction)
    expected = by_group(lambda values: (values - values.mean()) / (values.std(ddof=correction) + 1e-6))
    found, _ = group_advantages(PROMPTS, REWARDS, {}, groups=GROUPS, deviation=deviation, **SIZES)
    assert found == pytest.approx(expected, rel=1e-12)
    values = np.array(REWARDS)
    expected = (values - values.mean()) / (values.std(ddof=correction) + 1e-6)
    found, _ = batch_advantages(PROMPTS, REWARDS, {}, groups=GROUPS, deviation=deviation, **SIZES)
    assert found == pytest.approx(expected, rel=1e-12)
    alone, _ = group_advantages(PROMPTS, REWARDS, {}, groups=range(8), deviation=deviation, **SIZES)
    assert alone.tolist() == [0.0] * 8


@pytest.mark.parametrize(("correction", "of_group", "of_prompt"), [(None, 1, 0), (0, 0, 0), (1, 1, 1)])
def test_all_can_be_divided_by_the_deviation_of_the_batch(correction, of_group, of_prompt):
    """As Flow-GRPO's code (numpy's deviation, K) and UniRL's (torch's, K − 1) do with the rewards as they are."""
    deviation, values = Deviation(of_batch=True, correction=correction), np.array(REWARDS)
    expected = by_group(lambda part: (part - part.mean()) / (values.std(ddof=of_group) + 1e-6))
    found, _ = group_advantages(PROMPTS, REWARDS, {}, groups=GROUPS, deviation=deviation, **SIZES)
    assert found == pytest.approx(expected, rel=1e-12)
    few = {"buffer_size": 16, "min_count": 1}
    found, _ = per_prompt_advantages(PROMPTS, REWARDS, {}, groups=GROUPS, deviation=deviation, **few)
    for prompt in set(PROMPTS):
        of = [row for row, name in enumerate(PROMPTS) if name == prompt]
        expected = (values[of] - values[of].mean()) / (values.std(ddof=of_prompt) + 1e-6)
        assert found[of] == pytest.approx(expected, rel=1e-12)


def test_rewards_as_they_are_are_compared_with_nothing():
    found, statistics = ADVANTAGES["none"](PROMPTS, REWARDS, {"cat": (1.0,)}, groups=GROUPS, **SIZES)
    assert found.tolist() == REWARDS
    assert statistics == {"cat": (1.0,)}


def test_leave_one_out_advantages_by_hand():
    expected = by_group(lambda values: [v - np.delete(values, row).mean() for row, v in enumerate(values)])
    assert advantages_of(leave_one_out_advantages, REWARDS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "none"])
def test_advantages_of_any_kind_ignore_an_offset_of_all_rewards(name):
    function = ADVANTAGES[name]
    statistics = function(PROMPTS, REWARDS, {}, groups=GROUPS, **SIZES)
    shifted = function(PROMPTS, [reward + 64.0 for reward in REWARDS], {}, groups=GROUPS, **SIZES)
    np.testing.assert_allclose(statistics[0], shifted[0], rtol=1e-9)


@pytest.mark.parametrize("function", [group_advantages, leave_one_out_advantages])
def test_the_offset_of_a_group_does_not_matter_to_group_advantages(function):
    shifted = [reward + 100.0 * group for reward, group in zip(REWARDS, GROUPS, strict=True)]
    np.testing.assert_allclose(advantages_of(function, shifted), advantages_of(function, REWARDS), rtol=1e-9)


@pytest.mark.parametrize(
    ("function", "factor"),
    [(batch_advantages, 1.0), (group_advantages, 1.0), (leave_one_out_advantages, 50.0)],
)
def test_only_leave_one_out_advantages_have_the_unit_of_the_reward(function, factor):
    scaled = advantages_of(function, [50 * reward for reward in REWARDS])
    expected = factor * np.array(advantages_of(function, REWARDS))
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)  # ε is a part of the deviation


@pytest.mark.parametrize("function", [group_advantages, leave_one_out_advantages])
def test_a_group_without_differences_has_no_advantage(function):
    assert advantages_of(function, [2.5] * 8) == [0.0] * 8
    assert advantages_of(function, REWARDS, groups=range(8)) == [0.0] * 8
