"""Several runs in one report: which are of one method, their rows, their curves and their images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reported_runs import MONITORED, PROMPTS, REWARD, SAMPLES, data_of, write_reported

from rlcm_cli.report.html import compare
from rlcm_cli.report.html.charts import method_colour
from rlcm_cli.report.html.compare import (
    chart_comparison,
    draw_together,
    group_methods,
    name_methods,
    tabulate_runs,
)
from rlcm_cli.report.html.images import encode_picture


@pytest.fixture
def read(tmp_path):
    def read(name: str, **changes):
        return data_of(write_reported(tmp_path / name, **{"rollouts": 0, **changes}))

    return read


@pytest.fixture
def runs(read):
    """Two seeds of one method, and a run of another."""
    return [
        read("plain-1", seed=1),
        read("plain-2", seed=2),
        read("fast", seed=1, train={"learning_rate": 0.5}, iterations=2, checkpoints=(0, 2)),
    ]


def test_runs_that_differ_in_their_seed_alone_are_of_one_method(runs):
    assert group_methods(runs) == [0, 0, 1]
    assert group_methods(runs[::-1]) == [0, 1, 1]


def test_a_method_is_named_by_what_its_runs_names_have_in_common(runs, read):
    assert name_methods(runs) == ["plain (2 seeds)", "fast"]
    assert name_methods([read("a", seed=1), read("b", seed=2)]) == ["a (2 seeds)"]
    seeds = [replace(read(f"seed-{seed}", seed=seed), label=f"rlcm/seed-{seed}") for seed in (3, 4)]
    assert name_methods(seeds) == ["rlcm (2 seeds)"]


def test_the_table_has_a_row_a_run(runs):
    first, second, third = tabulate_runs(runs)
    assert [row.label for row in (first, second, third)] == ["plain-1", "plain-2", "fast"]
    assert (first.seed, second.seed, first.goal) == (1, 2, REWARD)
    assert (first.iterations, first.images, third.iterations) == (4, 4 * SAMPLES, 2)
    assert first.seconds == pytest.approx(4 * (1 + 0.25 + 2) + 0.1 * (1 + 2 + 3))
    assert first.colour == second.colour == method_colour(0)
    assert third.colour == method_colour(1)
    assert first.levels.final > first.levels.first
    assert set(first.changes) == {(REWARD, False), (REWARD, True)}  # what is monitored is not what is trained for


def test_a_run_without_metrics_has_no_levels(read):
    (row,) = tabulate_runs([read("early", iterations=0)])
    assert (row.levels, row.iterations, row.seconds) == (None, 0, 0)


def test_each_reward_has_a_chart_with_a_line_a_run(runs):
    charts = chart_comparison(runs)
    assert [chart.title for chart in charts] == [REWARD, MONITORED]
    rows = charts[0].spec["data"]["values"]
    assert {row["run"] for row in rows} == {"plain-1", "plain-2", "fast"}
    assert {row["run"]: row["c"] for row in rows} == {"plain-1": 0, "plain-2": 0, "fast": 1}
    assert [key.text for key in charts[0].keys] == ["plain (2 seeds)", "fast"]


def test_a_reward_with_other_settings_has_a_chart_of_its_own(read):
    settings = {MONITORED: {"floor": -3.0}}
    charts = chart_comparison([read("plain"), read("floor", reward_settings=settings)])
    titles = [chart.title for chart in charts]
    assert titles[0] == REWARD
    assert len(set(titles)) == 3
    assert all(title.startswith(f"{MONITORED} (") for title in titles[1:])
    assert [{row["run"] for row in chart.spec["data"]["values"]} for chart in charts[1:]] == [{"plain"}, {"floor"}]


def test_common_prompts_are_drawn_by_the_last_checkpoint_of_each(runs, read):
    few = read("few", prompts=PROMPTS[1:])
    labels, prompts = draw_together([*runs, few])
    assert labels == ["plain-1 at 4", "plain-2 at 4", "fast at 2", "few at 4"]
    assert [one.prompt for one in prompts] == [*PROMPTS[1:]]
    shown = prompts[0].pictures
    assert shown[0] == shown[1] == encode_picture(runs[0].evaluations[-1].images[2])
    assert shown[2] == encode_picture(runs[2].evaluations[-1].images[2]) != shown[0]


def test_one_run_is_not_drawn_together_with_itself(runs, read):
    assert draw_together(runs[:1]) == ([], [])
    assert draw_together([runs[0], read("none", checkpoints=())]) == ([], [])


def test_no_more_runs_and_prompts_than_can_be_seen_are_drawn(runs, monkeypatch):
    monkeypatch.setattr(compare, "MOST_RUNS_DRAWN", 2)
    monkeypatch.setattr(compare, "MOST_PROMPTS", 3)
    labels, prompts = draw_together(runs)
    assert (len(labels), len(prompts)) == (2, 3)
