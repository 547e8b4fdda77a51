"""The benchmark's driver: what a plan asks for, when a target counts as reached, and one run of it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from examples.benchmark.plan import read_plan
from examples.benchmark.price import price_rows, show_spread
from examples.benchmark.results import find_crossing
from examples.benchmark.run import configure
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.evaluations import read_evaluation

EXAMPLES = Path(__file__).parents[2] / "examples"
PLANS = sorted((EXAMPLES / "benchmark").glob("*.toml"))
PLAN = """
[tasks.small]
preset = "compression"
settings = ["sample.samples=4"]
target = { measure = "kilobytes", factor = 0.5, recognised = 0.9 }
emoji-lcm = { settings = ["sample.steps=2"], target = { measure = "recognition", change = 1.0 } }

[methods.plain]

[methods.fast]
settings = ["train.learning_rate=1e-2"]
emoji-lcm = { settings = ["lora.rank=4"] }
small = { settings = ["lora.alpha=4"], emoji-lcm = { settings = ["lora.alpha=8"] } }
every = 1

[[runs]]
tasks = ["small"]
models = ["emoji-sprint", "emoji-lcm"]
methods = ["plain", "fast"]
seeds = [1, 2]
"""


def result(points, target):
    """Give a result of evaluations (processor seconds, measure, recognised share)."""
    return {
        "task": "t",
        "model": "m",
        "method": "x",
        "seed": 1,
        "target": target,
        "points": [
            {
                "processor": seconds,
                "queries": 10 * seconds,
                "forwards": 100 * seconds,
                "all": {"kilobytes": value, "recognised": share},
            }
            for seconds, value, share in points
        ],
    }


FALL = {"measure": "kilobytes", "factor": 0.75, "change": 0.0, "recognised": 0.9}


class TestPlan:
    def test_runs_are_all_combinations_with_the_seeds_outermost(self, tmp_path):
        (tmp_path / "plan.toml").write_text(PLAN)
        cells = read_plan(tmp_path / "plan.toml")
        assert [cell.name for cell in cells[:5]] == [
            "small-emoji-sprint-plain-1",
            "small-emoji-sprint-fast-1",
            "small-emoji-lcm-plain-1",
            "small-emoji-lcm-fast-1",
            "small-emoji-sprint-plain-2",
        ]
        assert cells[3].settings == (
            "sample.samples=4",
            "sample.steps=2",
            "train.learning_rate=1e-2",
            "lora.rank=4",
            "lora.alpha=4",
            "lora.alpha=8",
        )
        assert (cells[2].every, cells[3].every) == (5, 1)
        assert (cells[0].target.measure, cells[2].target.measure) == ("kilobytes", "recognition")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (PLAN.replace('["plain", "fast"]', '["slow"]'), r"\[methods.slow\] is missing"),
            (PLAN + "steps = 3\n", r"\[\[runs\]\] has steps; it takes every, "),
        ],
    )
    def test_a_name_without_an_explanation_is_refused(self, tmp_path, text, words):
        (tmp_path / "plan.toml").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_plan(tmp_path / "plan.toml")

    @pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
    def test_every_plan_has_settings_that_its_presets_take(self, path):
        for cell in {(cell.task, cell.model, cell.method): cell for cell in read_plan(path)}.values():
            assert configure(cell).model.name == cell.model


class TestCrossing:
    def test_lies_on_the_line_between_two_evaluations(self):
        found = find_crossing(result([(0, 4.0, 1.0), (10, 3.5, 1.0), (20, 2.5, 0.95)], FALL))
        assert (found.processor, found.queries, found.forwards) == (15, 150, 1500)

    def test_of_a_rise_as_well(self):
        target = {"measure": "kilobytes", "factor": 1.0, "change": 0.5, "recognised": 0.0}
        assert find_crossing(
            result([(0, 4.0, 1.0), (10, 4.25, 0.1), (20, 5.0, 0.1)], target)
        ).processor == pytest.approx(40 / 3)

    def test_waits_until_enough_is_recognised(self):
        points = [(0, 4.0, 1.0), (10, 2.0, 0.8), (20, 2.5, 0.9), (30, 2.0, 0.95)]
        assert find_crossing(result(points, FALL)).processor == 20

    def test_is_none_where_the_target_is_never_reached(self):
        assert find_crossing(result([(0, 4.0, 1.0), (10, 3.1, 1.0)], FALL)) is None
        assert find_crossing(result([(0, 4.0, 1.0), (10, 2.0, 0.8)], FALL)) is None

    def test_a_run_that_never_reached_it_counts_as_above_all_others(self):
        assert show_spread([3.0, 1.0, None]) == "3 (1 to 3, 2 of 3)"
        assert show_spread([3.0, None, None]) == "never (3 to 3, 1 of 3)"
        assert show_spread([None, None]) == "never (0 of 2)"
        assert [show_spread([None]), show_spread([2.0])] == ["never", "2"]
        assert show_spread([2.0, 1.0]) == "2 (1 to 2)"


def test_a_plan_runs_and_is_not_run_twice(tmp_path):
    plan = tmp_path / "plan.toml"
    small = ["sample.steps=2", "sample.batch_size=4", "train.minibatch_size=4", "runtime.iterations=2"]
    small += ["evaluate.prompts=2", "evaluate.images_per_prompt=2", "train.ema_decay=0.5"]
    settings = ", ".join(f'"{one}"' for one in ["sample.samples=4", *small])
    plan.write_text(PLAN.replace('"sample.samples=4"', settings) + "finals = true\n")
    command = [sys.executable, "-m", "examples.benchmark.run", str(plan), "--runs", str(tmp_path / "runs")]
    command += ["--only", "emoji-lcm-fast-1"]
    first = subprocess.run(command, cwd=EXAMPLES.parent, check=True, capture_output=True, text=True).stdout
    assert first.startswith("small-emoji-lcm-fast-1: target: never; after ")
    path = tmp_path / "results/plan/small-emoji-lcm-fast-1.json"
    found = json.loads(path.read_text())
    assert [point["checkpoint"] for point in found["points"]] == [0, 1, 2]
    assert [point["queries"] for point in found["points"]] == [0, 4, 8]
    assert {"kilobytes", "recognised", "compressibility", "recognition"} == set(found["points"][0]["all"])
    assert all(math.isfinite(value) for point in found["points"] for value in point["all"].values())
    layout = open_run(tmp_path / "runs/small-emoji-lcm-fast-1").layout
    plain = [read_evaluation(layout, number).rewards["compressibility"].mean() for number in (0, 2)]
    averaged = [found["points"][number]["all"]["compressibility"] for number in (0, 2)]
    assert averaged[0] == pytest.approx(plain[0], rel=1e-5)
    assert averaged[1] != pytest.approx(plain[1], rel=1e-3)  # drawn with the average of the weights
    finals = found["finals"]
    assert list(finals["steps"]) == ["1", "2", "4", "8"]
    assert 0 < finals["kl"] < 1  # two steps at a learning rate of 1e-2
    assert finals["diversity"][0] != finals["diversity"][1]
    assert price_rows([found], {"fast": "faster"})[0][:4] == ["small", "emoji-lcm", "faster", "1"]
    assert subprocess.run(command, cwd=EXAMPLES.parent, check=True, capture_output=True, text=True).stdout == ""
