"""Which checkpoint `--checkpoint` means."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reported_runs import MONITORED, REWARD, make_metrics, write_reported

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.runs.choosing import choose_checkpoint, describe_better, is_choice, require_checkpoint
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.evaluations import publish_rescored, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics


def choose(layout: RunLayout, text: str):
    return choose_checkpoint(layout, open_run(layout.root).config, text)


def make_checkpoints(layout: RunLayout, *numbers: int) -> None:
    """Make folders where checkpoints would be: only their numbers are looked at."""
    for number in numbers:
        layout.checkpoint(number).mkdir(parents=True)


def score_later(layout: RunLayout, name: str, means: dict[int, float]) -> None:
    """Give the images of evaluations a reward, the one of the first image missing."""
    for number, mean in means.items():
        found = read_evaluation(layout, number, images=False)
        values = np.full(len(found.seed), mean, np.float32)
        values[0] = np.nan
        publish_rescored(layout, found, {name: values}, {})


@pytest.fixture
def layout(tmp_path):
    return write_reported(tmp_path / "run", checkpoints=(0, 2, 4), iterations=4, rollouts=0)


def test_a_number_and_the_last_need_nothing_but_the_run(layout):
    make_checkpoints(layout, 0, 4)
    assert (choose(layout, "7").number, choose(layout, "7").why) == (7, "")
    assert choose(layout, "last").number == 4
    require_checkpoint(layout, 4)
    with pytest.raises(
        MissingFileError, match=r"000007: there is no such checkpoint; the run has 0, 4 \(see `rlcm inspect"
    ):
        require_checkpoint(layout, 7)


def test_the_best_is_that_of_the_held_out_reward(layout):
    means = {n: read_evaluation(layout, n, images=False).rewards[REWARD].mean() for n in (0, 2, 4)}
    assert choose(layout, "best").number == max(means, key=means.get)
    assert str(choose(layout, "best")) == "checkpoint 4, the best on the held-out images"


def test_the_best_by_a_reward_that_scored_later(layout):
    score_later(layout, "sharpness", {0: 1.0, 2: 5.0, 4: 3.0})
    assert str(choose(layout, "best:sharpness")) == "checkpoint 2, the best by 'sharpness' on the held-out images"


def test_the_best_by_what_is_monitored_only_in_training(tmp_path):
    layout = write_reported(tmp_path / "run", checkpoints=(), iterations=2, rollouts=0)
    assert choose(layout, f"best:{MONITORED}").number == 1
    assert choose(layout, f"best:{MONITORED}").why == f"the best by the monitored '{MONITORED}' in training"


@pytest.mark.parametrize("text", ["first", "-1", "1.5", "", "best:", "²", "1000000000", "BEST"])
def test_other_words_are_refused(layout, text):
    assert is_choice(text) == (text == "1000000000")
    with pytest.raises(ConfigError, match="is not a checkpoint; give its number, last, best, or best:REWARD"):
        choose(layout, text)


def test_the_best_of_one_is_no_choice_and_the_line_says_what_to_draw(tmp_path):
    layout = write_reported(tmp_path / "run", checkpoints=(2,), iterations=2, rollouts=0)
    make_checkpoints(layout, 0, 2)
    draw = f"`rlcm evaluate --run {layout.root} --checkpoint 0 --checkpoint 2`"
    with pytest.raises(ConfigError, match=f"--checkpoint best: .* has 1 evaluated checkpoint, and .*{draw}"):
        choose(layout, "best")
    with pytest.raises(ConfigError, match=f"no two evaluations of .* have the reward 'sharpness'.*{draw}"):
        choose(layout, "best:sharpness")


def test_a_reward_that_no_evaluation_has_is_to_be_scored_first(layout):
    with pytest.raises(ConfigError, match=f"score them with `rlcm evaluate --run {layout.root} --reward sharpness`"):
        choose(layout, "best:sharpness")


class TestHacking:
    @pytest.fixture
    def hacked(self, tmp_path):
        layout = write_reported(tmp_path / "run", checkpoints=(0, 4), iterations=0, rollouts=0)
        judged = [0.0, 3.0, 0.0, -3.0]
        for iteration, value in enumerate(judged):
            changes = {"rewards": {REWARD: float(iteration)}, "reward_mean": float(iteration)}
            publish_metrics(layout, make_metrics(iteration, monitored={MONITORED: value}, **changes))
        make_checkpoints(layout, 0, 1, 4)
        record = json.loads(layout.config.read_text())
        record["config"]["monitor"]["window"] = 1
        layout.config.write_text(json.dumps(record))
        return layout

    def test_the_best_is_the_one_that_the_alarm_names_and_not_the_highest_reward(self, hacked):
        found = choose(hacked, "best")
        assert (found.number, found.why) == (
            1,
            f"the best by '{MONITORED}', because the training reward is being hacked after it",
        )
        assert describe_better(hacked, open_run(hacked.root).config) == (
            f"the newest checkpoint games the reward; --checkpoint best is 1, the best one by '{MONITORED}'"
        )

    def test_without_an_alarm_nothing_is_said_of_a_better_one(self, layout):
        make_checkpoints(layout, 0, 4)
        assert describe_better(layout, open_run(layout.root).config) is None
