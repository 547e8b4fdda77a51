"""A comparison as text for people and programs: what is escaped, what is left out, which words stand for no number."""

import csv
import io

from compared_runs import write_evaluation, write_run

from rlcm_cli.report.compare.blocks import arrange, define_terms, format_cost, name_speed_ups
from rlcm_cli.report.compare.comparison import compare_runs
from rlcm_cli.report.compare.formats import list_texts, write_csv, write_latex, write_markdown
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.compare.table import tabulate


def table_of(*roots, label="", **options):
    return tabulate(compare_runs([open_compared(root, label=label) for root in roots], **{"window": 1, **options}))


def test_names_cannot_break_a_table(tmp_path):
    table = table_of(write_run(tmp_path / "run", [0.0, 1.0]), label="50 % & a_b | *c* \\ {d}")
    assert "50 % & a\\_b \\| \\*c\\* \\\\ {d}" in write_markdown(table)
    assert r"50 \% \& a\_b | *c* \textbackslash{} \{d\}" in write_latex(table)
    assert next(csv.DictReader(io.StringIO(write_csv(table))))["method"] == "50 % & a_b | *c* \\ {d}"


def test_latex_has_no_letter_that_only_some_fonts_have(tmp_path):
    roots = [write_run(tmp_path / f"run-{seed}", [-1.0, 0.5 * seed], seed=seed) for seed in (1, 2)]
    text = "\n".join(line for line in write_latex(table_of(*roots)).splitlines() if not line.startswith("%"))
    assert text.isascii()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3


def test_a_single_reward_is_told_once_and_a_method_without_it_has_a_dash(tmp_path):
    one = write_run(tmp_path / "one", [0.0, 1.0])
    other = write_run(tmp_path / "other", [0.0, 1.0], train={"learning_rate": 1.0})
    for number in (0, 1):
        write_evaluation(one, number, {"compressibility": [1.0], "sharpness": [2.0 + number]}, [False])
        write_evaluation(other, number, {"compressibility": [1.0]}, [False])
    blocks = arrange(table_of(one, other))
    assert [block.title for block in blocks] == [
        "Training reward",
        "compressibility, held-out seeds",
        "sharpness, held-out seeds",
        "Cost of first reaching 1.000",
        "Cost of the whole training",
    ]
    assert list_texts(blocks[2]) == [
        ["one", "0", "2.000", "2.000", "0", "3.000", "1.000"],
        ["other", "0", "–", "–", "–", "–", "–"],
    ]


def test_what_some_seeds_reach_has_a_count_and_no_mean(tmp_path):
    runs = [write_run(tmp_path / f"run-{seed}", [0.0, 1.0 * seed], seed=seed) for seed in (1, 2, 3)]
    table = table_of(*runs, target=1.5)
    reach = arrange(table)[1]
    assert [row[:3] for row in list_texts(reach)] == [
        ["run", "1", "never"],
        ["", "2", "8"],
        ["", "3", "5"],
        ["", "mean of 3", "2 of 3 reached it"],
    ]
    assert name_speed_ups(table) == []
    assert "cost: until a run's own curve first reaches 1.500; no mean where a seed never does" in define_terms(table)


def test_times_have_the_unit_that_fits():
    assert [format_cost("cpu_seconds", value) for value in (3.21, 119.0, 120.0, 7200.0)] == [
        "3.2 s",
        "119.0 s",
        "2.0 min",
        "2.0 h",
    ]
    assert format_cost("queries", 12345.6) == "12,346"


def test_rewards_of_files_are_named_without_their_folders_and_apart(tmp_path):
    mine, other = (f"/home/ann/{name}/neat.py:neat" for name in ("mine", "other"))
    run = write_run(tmp_path / "run", [0.0, 1.0], weights={mine: 1.0})
    for number in (0, 1):
        write_evaluation(run, number, {mine: [1.0], other: [2.0]}, [False])
    table = table_of(run)
    assert list(table["methods"][0]["held_out"]["rewards"]) == ["", "neat.py:neat", "neat.py:neat (2)"]
    assert "/home" not in repr(table) + write_markdown(table) + write_latex(table) + write_csv(table)
