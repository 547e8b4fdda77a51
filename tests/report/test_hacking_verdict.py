"""One verdict on hacking from two kinds of images: a report may not say "no alarm" beside "fell", nor the reverse."""

from dataclasses import replace

import numpy as np
import pytest
from reported_runs import MONITORED, REWARD, data_of, make_metrics, write_reported

from rlcm_cli.report.html.images import Budget
from rlcm_cli.report.html.page import compose_section
from rlcm_cli.report.run.hacking_verdict import judge_hacking


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """30 iterations in which the trained reward rises and the monitored one falls, in training."""
    return data_of(
        write_reported(tmp_path_factory.mktemp("run") / "run", iterations=30, rollouts=0, checkpoints=(0, 30))
    )


def with_held_out(data, monitored, trained):
    """The run whose last evaluation has these changes of its rewards."""
    first, last = data.evaluations
    spread = np.arange(len(first.prompts)) // 2 * 0.01
    rewards = {
        REWARD: first.rewards[REWARD] + trained + spread,
        MONITORED: first.rewards[MONITORED] + monitored + spread,
    }
    return replace(data, evaluations=[first, replace(last, rewards=rewards)])


def quiet(data):
    """The run without the fall in training."""
    rows = [make_metrics(number, monitored={MONITORED: -1.0}) for number in range(30)]
    return replace(data, metrics=rows, alarms={})


def test_both_kinds_of_images_agree(run):
    found = judge_hacking(with_held_out(run, -3.0, 2.0))
    (line,) = found.alarms
    assert found.title == "Reward hacking"
    assert found.sentence == ""
    assert line.startswith(f"By the images of training, the monitored reward '{MONITORED}' fell from")
    assert "The held-out images agree: 0.0000 → −2.9" in line
    assert "held-out seeds (fell)" in line


@pytest.mark.parametrize(("change", "verdict"), [(1.0, "rose"), (-0.015, "no clear change")])
def test_an_alarm_that_the_held_out_images_do_not_share_says_so(run, change, verdict):
    found = judge_hacking(with_held_out(run, change, 2.0))
    (line,) = found.alarms
    assert found.title == "Reward hacking?"
    assert "The held-out images do not: " in line
    assert f"({verdict})" in line
    assert line.endswith("Look at the images before you decide.")


def test_a_fall_on_held_out_images_alone_is_an_alarm_while_the_goal_rises_there(run):
    """The report of a run that was the worst for this: "emoji_clip fell", and six lines on "it did not fall"."""
    found = judge_hacking(with_held_out(quiet(run), -3.0, 2.0))
    (line,) = found.alarms
    assert found.title == "Reward hacking?"
    assert line.startswith(
        f"On the held-out images, the monitored reward {MONITORED} fell while what is trained for rose"
    )
    assert "The images of training raise no alarm: over the last 10 iterations" in line
    assert "No alarm" not in line + found.sentence


def test_a_fall_of_everything_is_no_hacking_and_is_said(run):
    found = judge_hacking(with_held_out(quiet(run), -3.0, -2.0))
    assert found.alarms == []
    assert "No alarm, judged by the images of training" in found.sentence
    assert "(unclear); but what is trained for did not rise there." in found.sentence


def test_no_alarm_tells_what_both_kinds_of_images_show(run):
    found = judge_hacking(with_held_out(quiet(run), 1.0, 2.0))
    assert found.alarms == []
    assert f"On the held-out images, {MONITORED} went 0.0000 → 1.0200 on held-out seeds (rose)" in found.sentence
    assert "(rose)" in found.sentence
    assert "fell" not in found.sentence


def test_cards_and_sentences_of_a_report_never_contradict_each_other(run):
    """Over random changes: where a card says that a monitored reward fell, nothing says otherwise."""
    random = np.random.default_rng(0)
    for _ in range(30):
        data = with_held_out(random.choice([run, quiet(run)]), *random.choice([-2.0, -0.01, 0.0, 0.01, 2.0], 2))
        section = compose_section(data, Budget(1, 2, 1), 100)
        told = " ".join([*section.alarms, *section.sentences])
        for change in section.changes:
            if change.reward == MONITORED:
                assert f"({change.verdict()})" in told
                rose = any(
                    one.verdict() == "rose"
                    for one in section.changes
                    if one.reward == REWARD and one.held_out == change.held_out
                )
                if change.verdict() == "fell" and rose:
                    assert section.alarms
                    assert "No alarm" not in told
        assert bool(section.alarms) != ("No alarm" in told)
