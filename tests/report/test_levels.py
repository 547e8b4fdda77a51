"""First, best and final reward: one definition, which report and comparison share."""

import re

import pytest
from compared_runs import write_run
from reported_runs import REWARD, write_reported

from rlcm_cli.report.compare.comparison import compare_runs
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.compare.table import tabulate
from rlcm_cli.report.html.page import render_report
from rlcm_cli.report.run.data import read_run
from rlcm_cli.report.run.levels import Levels, find_levels, format_level, smooth
from rlcm_cli.report.run.summary import find_changes


def test_the_mean_trails_and_starts_with_what_there_is():
    assert smooth([1.0, 3.0, 5.0, 1.0], 3) == [1.0, 2.0, 3.0, 3.0]
    assert smooth([1.0, 3.0], 1) == [1.0, 3.0]


@pytest.mark.parametrize(
    ("rewards", "levels"),
    [
        ([3.0], Levels(3.0, 3.0, 3.0, 1)),
        ([3.0, 1.0], Levels(3.0, 3.0, 1.0, 1)),
        ([9.0, 1.0, 2.0, 4.0], Levels(5.0, 5.0, 3.0, 2)),  # 9, a single lucky one, is no best
        ([0.0, 0, 0, 0, 5, 5, 5, 5, 5, 0, 0, 0], Levels(1.0, 5.0, 2.0, 5)),
    ],
)
def test_levels_are_means_of_the_first_the_best_and_the_last_iterations(rewards, levels):
    assert find_levels(rewards) == levels


@pytest.mark.parametrize("count", [2, 4, 9, 30])
def test_report_and_comparison_tell_the_same_of_the_same_run(tmp_path, count):
    rewards = [-3 + 0.9 * (number * 7 % 11) / 11 + number / count for number in range(count)]
    roots = [write_run(tmp_path / name, rewards, seed=seed) for seed, name in enumerate(["one", "two"])]
    runs = [open_compared(root) for root in roots]
    page = render_report([read_run(run, run.name) for run in runs], "")
    (method,) = tabulate(compare_runs([open_compared(root) for root in roots[:1]]))["methods"]
    told = [format_level(method[level]["mean"]) for level in ("first", "best", "final")]
    row = page[page.index('<td class="run">') :]
    cells = re.findall(r'<td class="n" data-value="[^"]*">([^<]*)</td>', row[: row.index("</tr>")])
    assert cells[-3:] == told


def test_report_and_comparison_tell_the_same_of_held_out_images(tmp_path):
    layout = write_reported(tmp_path / "run")
    run = open_compared(layout.root, "run")
    (method,) = tabulate(compare_runs([open_compared(layout.root)]))["methods"]
    changes = {change.held_out: change for change in find_changes(read_run(run, "run")) if change.reward == REWARD}
    for held_out, name in ((False, "held_out_seeds"), (True, "held_out_prompts")):
        told = method["held_out"]["rewards"][REWARD][name]
        assert told["first"]["mean"] == changes[held_out].before.mean
        assert told["final"]["mean"] == changes[held_out].after.mean
