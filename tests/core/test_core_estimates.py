"""Means over prompts: images of one prompt are averaged first, and the error is that of the prompts."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from rlcm_cli.core.estimates import estimate


def test_prompts_count_alike_however_many_images_they_have():
    found = estimate([1.0, 3.0, 9.0, 9.0, 9.0], ["cat", "cat", "dog", "dog", "dog"])
    assert (found.mean, found.prompts) == (5.5, 2)
    assert found.error == pytest.approx((9 - 2) / math.sqrt(2) / math.sqrt(2))


def test_the_order_of_the_images_does_not_matter():
    values, prompts = [1.0, 5.0, 3.0, 7.0], ["cat", "dog", "cat", "dog"]
    assert estimate(values, prompts) == estimate(values[::-1], prompts[::-1])


def test_images_without_a_value_are_left_out_with_their_prompt():
    found = estimate([1.0, math.nan, math.nan], ["cat", "cat", "dog"])
    assert (found.mean, found.prompts) == (1.0, 1)
    assert math.isnan(found.error)


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_without_any_value_there_is_no_mean(values):
    assert estimate(values, ["cat"] * len(values)) is None


def test_a_prompt_for_each_value_is_asked_for():
    with pytest.raises(ValueError, match="longer"):
        estimate([1.0, 2.0], ["cat"])


def test_it_needs_no_torch():
    check = "import sys; import rlcm_cli.core.estimates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
