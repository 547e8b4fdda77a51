"""The pieces of a page by themselves: specifications of charts, and the comparison of runs in one report."""

from reported_runs import MONITORED, PROMPTS, REWARD, data_of, write_reported

from rlcm_cli.report.html.compare import chart_comparison, draw_together, group_methods, name_methods, tabulate_runs
from rlcm_cli.report.html.specs import HOVER_POINTS, SCHEMA, frame, line_spec, round_digits


def test_numbers_keep_six_digits():
    assert round_digits(1 / 3) == 0.333333
    assert round_digits(-123456789.0) == -123457000.0


def test_a_line_tells_its_numbers_at_some_points_evenly_spread():
    values = [(number, float(number)) for number in range(3 * HOVER_POINTS)]
    spec = line_spec("Loss", values)
    rows = spec["data"]["values"]
    assert (spec["$schema"], spec["description"]) == (SCHEMA, "Loss over the iterations")
    assert len(rows) == len(values)
    assert sum("h" in row for row in rows) == HOVER_POINTS
    assert frame("empty", [])["data"] == {"values": []}


def test_runs_that_differ_only_in_their_seeds_are_one_method(tmp_path):
    runs = [
        data_of(write_reported(tmp_path / "lcm-1", seed=1)),
        data_of(write_reported(tmp_path / "other", train={"learning_rate": 0.5})),
        data_of(write_reported(tmp_path / "lcm-2", seed=2)),
    ]
    assert group_methods(runs) == [0, 1, 0]
    assert name_methods(runs) == ["lcm (2 seeds)", "other"]
    rows = tabulate_runs(runs)
    assert [(row.label, row.seed, row.iterations, row.images) for row in rows[:2]] == [
        ("lcm-1", 1, 4, 32),
        ("other", 5, 4, 32),
    ]
    assert {reward for reward, _ in rows[0].changes} == {REWARD}
    charts = chart_comparison(runs)
    assert [chart.title for chart in charts] == [REWARD, MONITORED]
    assert [key.text for key in charts[0].keys] == ["lcm (2 seeds)", "other"]
    assert len({value["run"] for value in charts[0].spec["data"]["values"]}) == 3


def test_common_prompts_are_drawn_side_by_side(tmp_path):
    runs = [data_of(write_reported(tmp_path / name)) for name in ("one", "two")]
    labels, prompts = draw_together(runs)
    assert labels == ["one at 4", "two at 4"]
    assert [row.prompt for row in prompts] == list(PROMPTS)
    assert all(len(row.pictures) == 2 for row in prompts)
    assert draw_together(runs[:1]) == ([], [])
