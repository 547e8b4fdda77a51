"""What a report says of a run: estimates, histograms, tables, charts, and what it leaves out."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from metric_rows import make_row
from reported_runs import MONITORED, PROMPTS, REWARD, SAMPLES, data_of, reward_of, write_reported

from rlcm_cli.core.estimates import estimate
from rlcm_cli.errors import ConfigError
from rlcm_cli.report.html.charts import chart_costs, chart_rewards, chart_updates, group_rows, read_group, trace
from rlcm_cli.report.html.images import Budget, find_extremes, follow_images
from rlcm_cli.report.html.page import balance_columns, compose_section, render_report
from rlcm_cli.report.html.scores import BINS, count_values, tabulate_prompts
from rlcm_cli.report.private import withhold, withhold_text
from rlcm_cli.report.run.hacking_verdict import judge_hacking
from rlcm_cli.report.run.summary import (
    Change,
    Estimate,
    describe_cost,
    find_changes,
    format_estimate,
)
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.run import prune_rollouts


def test_the_error_is_over_prompts_whose_images_are_averaged_first():
    found = estimate(np.array([1.0, 3.0, 5.0, 7.0]), ["cat", "cat", "dog", "dog"])
    assert (found.mean, found.prompts) == (4.0, 2)
    assert found.error == pytest.approx(2.0)  # means 2 and 6: deviation √8, over √2
    assert math.isnan(estimate(np.array([1.0, 3.0]), ["cat", "cat"]).error)
    assert estimate(np.array([math.nan]), ["cat"]) is None


def test_a_change_is_of_pairs_and_split_by_held_out_prompts(tmp_path):
    changes = find_changes(data_of(write_reported(tmp_path / "run")))
    assert [(change.reward, change.held_out) for change in changes] == [
        (REWARD, False), (REWARD, True), (MONITORED, False), (MONITORED, True)
    ]  # fmt: skip
    seeds, prompts = changes[:2]
    # 4 checkpoints times 1 + half the number of the prompt: 6, 8, 10 on the three training prompts.
    assert seeds.difference.mean == pytest.approx(8)
    assert seeds.difference.error == pytest.approx(2 / math.sqrt(3))
    assert prompts.difference.mean == pytest.approx(4)
    assert (seeds.verdict(), changes[2].verdict(), prompts.verdict()) == ("rose", "fell", "unclear")


def two_rewards(tmp_path, combine):
    """A run whose first reward rises by 1, 1.5, 2 and 2.5 a checkpoint on its prompts, the second falls by 1."""
    data = data_of(write_reported(tmp_path / "run", combine=combine))
    config = data.config.model_copy(update={"rewards": {REWARD: 1.0, MONITORED: 2.0}})
    return replace(data, run=replace(data.run, run=replace(data.run.run, config=config)))


def test_what_is_trained_for_has_a_verdict_and_its_chart_has_points(tmp_path):
    data = two_rewards(tmp_path, "sum")
    seeds, prompts = find_changes(data)[:2]
    assert seeds.is_sum
    assert seeds.name == f"{REWARD} + 2 × {MONITORED}"
    assert seeds.difference.mean == pytest.approx(
        8 - 2 * 4, abs=1e-6
    )  # as the two parts change, which the tests above say
    assert seeds.verdict() == "no clear change"
    assert prompts.difference.mean == pytest.approx(4 - 2 * 4)
    section = compose_section(data, Budget(1, 2, 1), 100)
    assert section.sentences[2].startswith(f"On 3 training prompts with held-out seeds, {seeds.name} did not change")
    total = chart_rewards(data, 100)[0]
    assert total.title == "Weighted sum of the rewards"
    assert {"held-out seeds", "held-out prompts"} <= {key.text for key in total.keys}


def test_a_goal_of_normalised_rewards_is_in_standard_deviations(tmp_path):
    data = two_rewards(tmp_path, "normalised")
    first, last = data.evaluations[0], data.evaluations[-1]
    seeds = find_changes(data)[0]
    assert seeds.name == f"{REWARD} + 2 × {MONITORED}, each in standard deviations"
    deviation = first.rewards[REWARD].astype(float).std()
    # The second has no deviation in the first evaluation, so it counts as it is.
    expected = (last.rewards[REWARD] - first.rewards[REWARD])[~first.held_out].astype(float).mean() / deviation - 2 * 4
    assert seeds.difference.mean == pytest.approx(expected)
    assert "Weighted sum of the rewards" not in [chart.title for chart in chart_rewards(data, 100)]


def test_a_band_ends_where_the_reward_does(tmp_path):
    _, monitored = chart_rewards(data_of(write_reported(tmp_path / "run")), 100)
    assert all(row["high"] <= 0 for row in monitored.spec["data"]["values"])
    assert monitored.spec["data"]["values"][0]["low"] == -1.5


def describe_hacking(data):
    return judge_hacking(replace(data, evaluations=[], alarms={})).sentence


def test_no_alarm_says_what_it_looked_at(tmp_path):
    data = data_of(write_reported(tmp_path / "run", iterations=24, rollouts=0, checkpoints=()))
    rows = [
        row.model_copy(update={"monitored": {MONITORED: -1.0 - (row.iteration >= 14) * 0.1}}) for row in data.metrics
    ]
    told = describe_hacking(replace(data, metrics=rows))
    assert told == (
        "No alarm, judged by the images of training: over the last 10 iterations, recognition was 0.2 standard "
        "deviations below its best 10 before; an alarm needs 0.5 below."
    )
    risen = [row.model_copy(update={"monitored": {MONITORED: -2.0 + (row.iteration >= 14)}}) for row in data.metrics]
    assert "2 standard deviations above its best 10 before" in describe_hacking(replace(data, metrics=risen))
    fallen = [
        row.model_copy(update={"reward_mean": 0.0, "monitored": {MONITORED: -1.0 - (row.iteration >= 14)}})
        for row in data.metrics
    ]
    assert "rises, which it did not" in describe_hacking(replace(data, metrics=fallen))


@pytest.mark.parametrize(("cards", "columns"), [(0, 1), (1, 1), (5, 5), (6, 3), (7, 4), (11, 4)])
def test_no_card_stands_alone_in_a_row(cards, columns):
    assert balance_columns(cards) == columns


def test_headings_go_down_one_level_at_a_time_and_every_part_can_be_jumped_to(tmp_path):
    runs = [data_of(write_reported(tmp_path / name)) for name in ("one", "two")]
    for page in (render_report(runs[:1], ""), render_report(runs, "")):
        levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", page)]
        assert levels[0] == 1
        assert max(after - before for before, after in pairwise(levels)) == 1
        targets = re.findall(r'<a href="#([^"]+)"', page)
        assert len(targets) >= 6
        assert all(page.count(f'id="{target}"') == 1 for target in targets)
        assert "loading=" not in page  # what is out of sight would be missing on paper


@pytest.mark.parametrize(
    ("mean", "error", "verdict"), [(1.0, 0.4, "rose"), (-1.0, 0.4, "fell"), (1.0, 0.5, "no clear change")]
)
def test_two_standard_errors_are_a_clear_change(mean, error, verdict):
    one = Estimate(0.0, 0.1, 9)
    assert Change(REWARD, True, one, one, Estimate(mean, error, 9)).verdict() == verdict


def test_an_estimate_has_the_digits_that_its_error_resolves():
    assert format_estimate(Estimate(-1.81234, 0.0617, 9)) == "−1.812\u00a0±\u00a00.062"
    assert format_estimate(Estimate(1234.5, 12.3, 9)) == "1,234\u00a0±\u00a012"
    assert format_estimate(Estimate(0.5, math.nan, 1)) == "0.5"
    assert format_estimate(Estimate(-0.001, 1.0, 9)) == "0.0\u00a0±\u00a01.0"


def test_histograms_count_every_stored_reward(tmp_path):
    histogram = count_values(data_of(write_reported(tmp_path / "run")), REWARD)
    assert histogram.iterations == [1, 2, 3, 4]
    assert [sum(counts) for counts in histogram.counts] == [SAMPLES] * 4
    assert {len(counts) for counts in histogram.counts} == {BINS}
    lowest = int((reward_of(0, 0) - histogram.start) / histogram.width)
    assert histogram.counts[0][lowest] == 2  # samples 0 and 4 are of the same prompt
    assert histogram.start + BINS * histogram.width == pytest.approx(reward_of(3, 7))


def test_rewards_that_are_all_equal_have_a_histogram(tmp_path, monkeypatch):
    monkeypatch.setattr("reported_runs.reward_of", lambda iteration, sample: 0.0)
    histogram = count_values(data_of(write_reported(tmp_path / "run")), REWARD)
    assert histogram.width > 0
    assert [sum(counts) for counts in histogram.counts] == [SAMPLES] * 4


def test_prompts_are_averaged_over_the_first_and_the_last_iterations(tmp_path):
    table = tabulate_prompts(data_of(write_reported(tmp_path / "run", iterations=10)), REWARD)
    assert sorted(row.prompt for row in table.rows) == sorted(PROMPTS)
    cow = next(row for row in table.rows if row.prompt == "cow")  # samples 2 and 6 of each iteration
    assert cow.images == 20
    assert cow.first == pytest.approx(2 + 0.04 + 0.05)  # iterations 0 and 1
    assert cow.change == pytest.approx(0.8)
    assert table.source == "first and last 2 of 10 iterations"


def test_without_rollouts_prompts_are_those_of_the_evaluations(tmp_path):
    table = tabulate_prompts(data_of(write_reported(tmp_path / "run", rollouts=0)), REWARD)
    assert [row.held_out for row in table.rows if row.prompt == PROMPTS[0]] == [True]
    assert "evaluations of checkpoints 0 and 4" in table.source


def test_best_and_worst_are_of_the_newest_rollouts_with_prompt_and_seed(tmp_path):
    layout = write_reported(tmp_path / "run")
    found = find_extremes(data_of(layout), REWARD, 2)
    assert [(sample.reward, sample.prompt, sample.seed) for sample in found.best] == [
        (pytest.approx(3.37), "bee", 2**62 + 7),
        (pytest.approx(3.33), "bee", 2**62 + 3),
    ]
    assert [sample.prompt for sample in found.worst] == ["cat", "cat"]
    assert found.worst[0].where == "rollout 0, sample 0"
    prune_rollouts(layout, keep=1, trained=4)
    assert find_extremes(data_of(layout), REWARD, 2).worst[0].where == "rollout 3, sample 0"
    for shard in layout.root.glob("rollouts/*/shard-*.safetensors"):
        shard.unlink()
    assert find_extremes(data_of(layout), REWARD, 2).best[0].where == "checkpoint 4"


def test_fixed_images_are_of_the_same_prompt_and_seed_and_bounded(tmp_path):
    data = data_of(write_reported(tmp_path / "run", checkpoints=range(9)))
    checkpoints, images = follow_images(data, Budget(fixed=5, checkpoints=3, extremes=1))
    assert checkpoints == [0, 4, 8]
    assert [(image.prompt, image.seed) for image in images] == [
        ("cat", 900), ("dog", 902), ("cow", 904), ("bee", 906), ("dog", 903)
    ]  # fmt: skip
    assert all(len(set(image.pictures)) == 3 for image in images)
    assert images[0].held_out
    assert list(images[1].rewards[REWARD]) == pytest.approx([0.2, 6.2, 12.2])


def test_every_reward_and_every_value_that_moves_has_a_chart(tmp_path):
    data = data_of(write_reported(tmp_path / "run"))
    trained, monitored = chart_rewards(data, 100)
    assert [trained.title, monitored.title] == [REWARD, MONITORED]
    assert [key.text for key in trained.keys][:3] == ["mean", "± one standard deviation over images", "best image"]
    row = trained.spec["data"]["values"][1]
    assert row["i"] == 2
    assert row["v"] - row["low"] == pytest.approx(1.1)
    charts, constant = chart_updates(data, 100)
    assert [chart.title for chart in charts] == [
        "Approximate KL", "Loss", "Clip fraction", "Gradient norm", "Learning rate"
    ]  # fmt: skip
    assert constant == [("Probability ratio", 1.0), ("Ratio drift", 0.0), ("Prompts with identical rewards", 0.0)]
    speed, phases = chart_costs(data, 100)
    assert speed.spec["data"]["values"][0]["v"] == pytest.approx(SAMPLES / 3.25, rel=1e-5)
    assert [key.text for key in phases.keys] == ["sample", "score", "train"]


def test_charts_compile_without_a_warning(tmp_path, capfd):
    vl_convert = pytest.importorskip("vl_convert", reason="needs the extra `report`")
    data = data_of(write_reported(tmp_path / "run"))
    charts = [*chart_rewards(data, 100), *chart_updates(data, 100)[0], *chart_costs(data, 100)]
    for chart in charts:
        assert vl_convert.vegalite_to_vega(chart.spec, vl_version="6.4")["marks"], chart.title
    assert "WARN" not in capfd.readouterr().err


def test_many_rows_are_thinned_to_means_and_the_best_of_all():
    rows = [make_row(n, reward_mean=float(n), rewards={"a": 2.0 * n}) for n in range(100)]
    groups = group_rows(rows, 10)
    assert [len(group) for group in groups] == [10] * 10
    assert trace(groups, lambda row: row.reward_mean)[0] == (10, 4.5)
    assert trace(groups, lambda row: row.rewards.get("a"))[0] == (10, 9.0)
    assert trace(groups, lambda row: row.rewards.get("b")) == []
    assert read_group(groups[0], lambda row: row.reward_best, max) == 9.5
    assert [list(group) for group in group_rows(rows, 100)] == [[row] for row in rows]
    assert list(group_rows([], 10)) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/models/lcm", "…/lcm"),
        ("~/prompts.txt", "…/prompts.txt"),
        ("..\\ann\\x.py:score", "…/x.py:score"),
        ("C:\\Users\\ann\\lcm", "…/lcm"),
        ("https://ann:pw@host.example/score", "server (address withheld)"),
        ("s3://bucket/run", "server (address withheld)"),
        ("SimianLuo/LCM_Dreamshaper_v7", "SimianLuo/LCM_Dreamshaper_v7"),
        ("to_out.0", "to_out.0"),
        ("a cat / a dog", "a cat / a dog"),
    ],
)
def test_paths_lose_their_folders_and_addresses_are_withheld(text, shown):
    assert withhold_text(text) == shown


def test_secrets_and_machines_of_a_configuration_are_withheld():
    values = {"rewards": {"/a/b.py:f": 1.0}, "api_key": "k", "ray": {"address": "host:1"}, "tokens": None, "x": [1]}
    assert withhold(values) == {
        "rewards": {"…/b.py:f": 1.0},
        "api_key": "(withheld)",
        "ray": {"address": "(withheld)"},
        "tokens": None,
        "x": [1],
    }


def test_what_is_damaged_is_left_out_and_said(tmp_path):
    layout = write_reported(tmp_path / "run")
    replace_bytes(layout.metrics(2), b"{")
    layout.evaluation(4).write_bytes(b"short")
    layout.manifest(1).write_bytes(b"[]")
    data = data_of(layout)
    assert [row.checkpoint for row in data.metrics] == [1, 3, 4]
    assert [evaluation.checkpoint for evaluation in data.evaluations] == [0, 2]
    assert [rollout.manifest.iteration for rollout in data.rollouts] == [0, 2, 3]
    assert len(data.faults) == 3
    assert not any(str(tmp_path) in line for line in data.faults)
    assert all("run/" in line for line in data.faults)


def test_metrics_are_read_from_the_lines_where_the_files_are_gone(tmp_path):
    layout = write_reported(tmp_path / "run")
    for file in (layout.root / "metrics").iterdir():
        file.unlink()
    assert len(data_of(layout).metrics) == 4


def test_rewards_of_an_iteration_at_work_are_not_missed(tmp_path):
    layout = write_reported(tmp_path / "run", iterations=2, rollouts=3, checkpoints=(0,))
    for file in (layout.rollout(2) / "rewards").rglob("*.*"):
        file.unlink()
    assert not any("gone" in line for line in data_of(layout).faults)
    for file in (layout.rollout(1) / "rewards").rglob("*.*"):
        file.unlink()
    assert "The stored rewards of 1 trained iteration are gone." in data_of(layout).faults


def test_a_run_without_anything_is_refused(tmp_path):
    layout = write_reported(tmp_path / "run", iterations=0, checkpoints=())
    with pytest.raises(ConfigError, match="nothing to report"):
        data_of(layout)


def test_sentences_tell_of_cost_and_watch(tmp_path):
    data = data_of(write_reported(tmp_path / "run"))
    assert describe_cost(data).startswith("32 images drawn and scored in 14 s of work (sample 4 s, score 1 s")
    assert describe_hacking(data) == (
        "No alarm, judged by the images of training: recognition was monitored for 4 iterations, and the alarm needs "
        "20."
    )


def test_a_fall_of_a_monitored_reward_is_an_alarm(tmp_path):
    data = data_of(write_reported(tmp_path / "run", iterations=30, rollouts=0, checkpoints=()))
    assert list(data.alarms) == [MONITORED]
    assert "hacking" in data.alarms[MONITORED]


def test_an_alarm_does_not_tell_where_a_reward_lies(tmp_path):
    name = "/home/ann/rewards.py:neat"
    data = data_of(write_reported(tmp_path / "run"))
    data = replace(data, alarms={name: f"the monitored reward '{name}' fell"})
    section = compose_section(data, Budget(1, 2, 1), 100)
    assert section.alarms[0] == "By the images of training, the monitored reward 'rewards.py:neat' fell."


def test_rows_of_charts_are_json(tmp_path):
    data = data_of(write_reported(tmp_path / "run"))
    json.dumps([chart.spec for chart in chart_rewards(data, 100)], allow_nan=False)
