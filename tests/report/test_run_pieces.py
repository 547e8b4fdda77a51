"""The pieces of a run's report by themselves: bands, estimates, goals, before and after, exported images."""

import csv
import math

import numpy as np
import pytest
from PIL import Image
from reported_runs import PROMPTS, REWARD, SAMPLES, data_of, write_evaluation, write_reported

from rlcm_cli.errors import MissingFileError
from rlcm_cli.report.run.bands import FREE, band
from rlcm_cli.report.run.before_after import PAIRS_A_ROW, arrange_pairs, write_pairs
from rlcm_cli.report.run.estimates import Estimate, estimate
from rlcm_cli.report.run.goals import find_goals, sum_by_task
from rlcm_cli.report.run.images import INDEX, export_images
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.run import prune_rollouts


@pytest.mark.parametrize(
    ("mean", "bounds", "ends"),
    [(1.0, FREE, (0.5, 1.5)), (0.25, (0.0, 0.5), (0.0, 0.5)), (3.0, (0.0, 1.0), (2.5, 3.0))],
)
def test_a_band_ends_where_a_reward_does_and_holds_its_mean(mean, bounds, ends):
    assert band(mean, 0.5, bounds) == ends


def test_an_estimate_of_a_single_prompt_has_no_error():
    assert estimate([1.0, 3.0, math.nan], ["a", "b", "c"]) == Estimate(2.0, pytest.approx(1.0), 2)
    found = estimate([1.0, 3.0], ["a", "a"])
    assert (found.mean, found.prompts) == (2.0, 1)
    assert math.isnan(found.error)


def test_a_sum_is_by_the_weights_of_each_image_s_task(tmp_path):
    evaluation = read_evaluation(write_reported(tmp_path / "run"), 4)
    total = sum_by_task(evaluation, {"compression": {REWARD: 2.0}})
    assert total.tolist() == pytest.approx((2 * evaluation.rewards[REWARD]).tolist())
    assert np.isnan(sum_by_task(evaluation, {"another": {REWARD: 2.0}})).all()


def test_a_single_reward_is_no_goal_of_its_own(tmp_path):
    assert find_goals(data_of(write_reported(tmp_path / "run"))) == []


def test_pairs_are_of_the_first_and_the_last_evaluation(tmp_path):
    layout = write_reported(tmp_path / "run", checkpoints=(0,))
    assert write_pairs(layout) is None
    write_evaluation(layout, 4)
    with Image.open(write_pairs(layout)) as picture:
        assert picture.getpixel((3, 3)) == (0, 0, 0)  # of checkpoint 0
        assert picture.getpixel((3 + 8 + 2, 3)) == (160, 160, 160)  # the same image, of checkpoint 4
        assert picture.width == 2 * PAIRS_A_ROW * (8 + 2) + 2
    before, after = (read_evaluation(layout, number) for number in (0, 4))
    assert arrange_pairs(before, after).size[0] == 2 * PAIRS_A_ROW * (8 + 2) + 2


def test_images_are_exported_with_a_table_of_their_rewards(tmp_path):
    layout = write_reported(tmp_path / "run")
    *files, table = export_images(layout, tmp_path / "images", 2)
    assert [file.name for file in files[:2]] == ["000002-00000-cat.png", "000002-00001-dog.png"]
    assert (len(files), table.name) == (SAMPLES, INDEX)
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["prompt"] for row in rows[:4]] == list(PROMPTS)
    assert int(rows[3]["seed"]) == 2**62 + 3
    (reward,) = [float(value) for name, value in rows[5].items() if name.startswith(REWARD)]
    assert reward == pytest.approx(0.2 + 1 + 0.05)


def test_images_that_are_not_there_are_one_line(tmp_path):
    layout = write_reported(tmp_path / "run")
    with pytest.raises(MissingFileError, match="no such rollout"):
        list(export_images(layout, tmp_path, 9))
    prune_rollouts(layout, keep=1, trained=4)
    with pytest.raises(MissingFileError, match="was pruned"):
        list(export_images(layout, tmp_path, 0))
