"""Means, differences and wins of images that were drawn in several ways."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlcm_cli.core.paired_comparisons import WinRate, compare_values, wilson_interval
from rlcm_cli.judging.summary import judge_ways, to_json

NAN = math.nan
SHARES = [  # scipy 1.17.1: binomtest(wins, n).proportion_ci(0.95, "wilson")
    (0, 12, 0.0, 0.24249401),
    (7, 12, 0.31951131, 0.80673969),
    (31, 45, 0.54335194, 0.80471301),
    (150, 200, 0.68565902, 0.80491832),
]


def test_images_of_a_prompt_are_averaged_before_prompts_are():
    prompts = ["cat", "cat", "dog", "dog", "cow"]
    base, new = [1.0, 1.0, 5.0, 5.0, 0.0], [2.0, 0.0, 6.0, 5.0, NAN]
    first, second = judge_ways({"base": {"r": base}, "lora": {"r": new}}, prompts, {"lora": "base"})
    assert (first.way, first.estimate.mean, first.estimate.prompts, first.images) == ("base", 2.0, 3, 5)
    assert (first.wins, first.difference, first.against) == (None, None, None)
    assert (second.estimate.mean, second.images, second.against) == (pytest.approx((1 + 5.5) / 2), 4, "base")
    assert second.difference.mean == pytest.approx((0 + 0.5) / 2)
    assert second.difference.error == pytest.approx(0.25)
    assert second.wins == WinRate((0.5 + 0.75) / 2, wilson_interval(0.625, 2), prompts=2, comparisons=4)


def test_differences_and_wins_are_paired_by_image():
    generator = np.random.default_rng(3)
    prompts = [f"prompt {number}" for number in range(40) for _ in range(3)]
    base = generator.normal(size=120)
    new = base + generator.normal(0.3, 0.5, size=120)
    _, found = judge_ways({"0": {"r": base.tolist()}, "9": {"r": new.tolist()}}, prompts, {"9": "0"})
    means = (new - base).reshape(40, 3).mean(1)
    assert found.difference.mean == pytest.approx(means.mean())
    assert found.difference.error == pytest.approx(means.std(ddof=1) / math.sqrt(40))
    assert found.difference.error < found.estimate.error  # else pairing would be for nothing
    assert found.wins.share == pytest.approx((new > base).reshape(40, 3).mean(1).mean())


@pytest.mark.parametrize(("won", "prompts", "low", "high"), SHARES)
def test_the_interval_is_that_of_scipy(won, prompts, low, high):
    values = [1.0] * won + [-1.0] * (prompts - won)
    rate = compare_values(values, [0.0] * prompts, [str(number) for number in range(prompts)])
    assert rate.share == pytest.approx(won / prompts)
    assert rate.interval == pytest.approx((low, high), abs=1e-7)


def test_what_has_no_values_is_left_out():
    ways = {"base": {"r": [NAN, NAN], "s": [1.0, 2.0]}, "lora": {"r": [1.0, NAN]}}
    found = judge_ways(ways, ["cat", "dog"], {"lora": "base"})
    assert [(one.reward, one.way) for one in found] == [("r", "lora"), ("s", "base")]
    assert found[0].wins is None
    assert compare_values([NAN], [1.0], ["cat"]) is None
    assert judge_ways({}, [], {}) == []


def test_plain_values_name_all_of_it():
    _, found = judge_ways({"0": {"r": [0.0, 1.0]}, "5": {"r": [2.0, 1.0]}}, ["cat", "dog"], {"5": "0", "0": "0"})
    assert to_json(found) == {
        "way": "5",
        "reward": "r",
        "mean": 1.5,
        "standard_error": 0.5,
        "prompts": 2,
        "images": 2,
        "against": "0",
        "difference": 1.0,
        "difference_standard_error": 1.0,
        "win_rate": 0.75,
        "win_rate_interval": list(wilson_interval(0.75, 2)),
    }
