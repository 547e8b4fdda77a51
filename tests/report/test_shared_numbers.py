"""Report, comparison, evaluation and the choice of the best checkpoint tell the same numbers of the same runs.

A property over made-up runs: random rewards, weights, prompts, numbers of images, checkpoints, iterations and seeds.
"""

import math

import numpy as np
import pytest
from compared_runs import write_evaluation, write_run

from rlcm_cli.judging.held_out import judge_checkpoints
from rlcm_cli.phases.evaluate import average_evaluation
from rlcm_cli.report.compare.blocks import arrange
from rlcm_cli.report.compare.comparison import compare_runs
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.compare.table import tabulate
from rlcm_cli.report.html.compare import tabulate_runs
from rlcm_cli.report.run.data import read_run
from rlcm_cli.report.run.summary import describe_best, find_changes
from rlcm_cli.runs.choosing import choose_checkpoint
from rlcm_cli.runs.held_out import measure_reward, read_weights
from rlcm_cli.runs.pruning import find_best
from rlcm_cli.store.evaluations import read_evaluation

REWARDS = ("compressibility", "sharpness", "colourfulness")
PARTS = {False: "held_out_seeds", True: "held_out_prompts"}


def draw_weights(random):
    """Draw one to three rewards with weights."""
    names = REWARDS[: random.integers(1, 4)]
    weights = {name: float(random.choice([1.0, 2.0, -0.5])) for name in names}
    if abs(sum(weights.values())) < 0.1:  # by which the helper divides
        weights[names[0]] += 1.0
    return weights


def draw_goal(random):
    """Draw what a run is trained for, by one task or two: its settings, and the rewards of each task."""
    goals = {
        task: {"rewards": draw_weights(random), "combine": str(random.choice(["sum", "normalised"]))}
        for task in ("compression", "other")[: random.integers(1, 3)]
    }
    if len(goals) == 1:
        (goal,) = goals.values()
        return {"weights": goal["rewards"], "combine": goal["combine"]}, {"compression": goal["rewards"]}
    return {"rewards": None, "tasks": goals}, {task: goal["rewards"] for task, goal in goals.items()}


def draw_rewards(random, weights, tasks, partly):
    """Draw a number an image of each reward, of those that its task has; `partly`: not of all of these."""
    rewards = {}
    for scale, name in enumerate((*REWARDS, "extra"), 1):
        values = random.normal(0, scale, len(tasks))
        if partly:
            values[random.random(len(tasks)) < 0.3] = np.nan
        if name != "extra":
            values[[name not in weights[task] for task in tasks]] = np.nan
        rewards[name] = values
    return {name: values for name, values in rewards.items() if not np.isnan(values).all()}


def make_runs(root, random):
    """Write runs of one method; return them as compare and report open them, and whether some rewards are unknown."""
    sections, weights = draw_goal(random)
    prompts = [f"prompt {number}" for number in range(random.integers(2, 6))]
    images, kept_out, partly = int(random.integers(1, 4)), int(random.integers(0, len(prompts))), random.random() < 0.5
    plan = [
        (task, f"{prompt} of {task}", number < kept_out)
        for task in weights
        for number, prompt in enumerate(prompts)
        for _ in range(images)
    ]
    tasks, of_images, held_out = zip(*plan, strict=True)
    checkpoints = [0, *np.cumsum(random.integers(1, 4, random.integers(1, 4))).tolist()]
    runs = []
    for seed in range(random.integers(1, 4)):
        means = random.normal(0, 2, random.integers(2, 14)).tolist()
        run = write_run(root / f"run-{seed}", means, seed=seed, **sections)
        for checkpoint in checkpoints:
            rewards = draw_rewards(random, weights, tasks, partly)
            write_evaluation(run, checkpoint, rewards, held_out, prompts=of_images, tasks=tasks)
        runs.append(open_compared(run))
    return runs, partly


@pytest.mark.parametrize("number", range(24))
def test_every_number_that_two_of_them_tell_is_the_same(tmp_path, number):
    runs, partly = make_runs(tmp_path, np.random.default_rng(number))
    (method,) = tabulate(compare_runs(runs))["methods"]
    read = [read_run(run, run.name) for run in runs]
    for index, (run, data, row) in enumerate(zip(runs, read, tabulate_runs(read), strict=True)):
        # training
        levels = [row.levels.first, row.levels.best, row.levels.final]
        assert levels == [method[level]["of_each_seed"][index] for level in ("first", "best", "final")]
        assert row.iterations == method["iterations"][index]
        assert row.images == method["total"]["queries"]["of_each_seed"][index]
        assert row.seconds == pytest.approx(method["total"]["wall_seconds"]["of_each_seed"][index])
        # the best checkpoint
        chosen = method["held_out"]["checkpoints"][index]
        assert choose_checkpoint(run.layout, run.config, "best").number == chosen["best"]
        assert chosen["best"] in find_best(run.layout, run.config)
        assert all(f" {chosen['best']} is the best" in line for line in describe_best(data))
        assert len(describe_best(data)) == (len(data.evaluations) > 2)
        # the held-out images: the report
        told = method["held_out"]["rewards"]
        for change in find_changes(data):
            if change.is_sum and len(run.tasks) > 1:
                continue  # the report's sums are each of one task, and say so
            reached = told.get("" if change.is_sum else change.reward, {}).get(PARTS[change.held_out])
            if reached is None:
                assert partly  # another seed lacks it
                continue
            assert reached["first"]["of_each_seed"][index] == change.before.mean
            assert reached["final"]["of_each_seed"][index] == change.after.mean
            assert reached["change"]["of_each_seed"][index] == pytest.approx(change.difference.mean, abs=1e-9)
        # … what `evaluate` and `loop` print of a checkpoint
        for level, checkpoint in chosen.items():
            evaluation = read_evaluation(run.layout, checkpoint)
            printed = average_evaluation(evaluation, run.config, read_weights(run.layout, run.config, checkpoint))
            for held_out, value in ((False, printed.reward_training), (True, printed.reward_held_out)):
                same = told.get("", {}).get(PARTS[held_out], {}).get(level)
                assert partly or (value is None) == (same is None)
                if same is not None:
                    assert value == same["of_each_seed"][index]
            for name, value in printed.components.items():
                assert value == measure_reward([evaluation], name)[checkpoint]
        # … and how `evaluate --reward` compares checkpoints
        for judged in judge_checkpoints(run.layout, [chosen["final"]], [*run.trained, "extra"]).get("held_out", []):
            reached = told.get(judged.reward, {}).get("held_out_prompts")
            if reached is None:
                assert partly
                continue
            level = "final" if judged.way == str(chosen["final"]) else "first"
            assert reached[level]["of_each_seed"][index] == judged.estimate.mean
            if judged.difference:
                assert reached["change"]["of_each_seed"][index] == pytest.approx(judged.difference.mean, abs=1e-9)
    check_spreads(method)


def write_two_rewards(root, combine):
    """Write a run for two rewards: of a spread of 100 and of 1, each a spread higher at the end."""
    run = write_run(root, [0.0, 1.0], weights={"sharpness": 1.0, "brightness": 2.0}, combine=combine)
    write_evaluation(run, 0, {"sharpness": [0, 200], "brightness": [0, 2]}, [False] * 2, prompts=["cat", "dog"])
    write_evaluation(run, 1, {"sharpness": [100, 300], "brightness": [1, 3]}, [False] * 2, prompts=["cat", "dog"])
    return run


@pytest.mark.parametrize(
    ("combine", "unit", "levels"),
    [
        ("sum", "", [102.0, 204.0, 102.0]),
        ("normalised", ", each in standard deviations", [1 + 2, 2 + 4, 3]),  # 100 of 100 and twice 1 of 1, then twice
    ],
)
def test_the_sum_is_in_the_unit_that_training_has_it_in(tmp_path, combine, unit, levels):
    run = open_compared(write_two_rewards(tmp_path / "run", combine))
    table = tabulate(compare_runs([run]))
    told = table["methods"][0]["held_out"]["rewards"][""]["held_out_seeds"]
    assert [told[level]["mean"] for level in ("first", "final", "change")] == levels
    assert f"sharpness + 2 × brightness{unit}, held-out seeds" in [block.title for block in arrange(table)]
    change = find_changes(read_run(run, run.name))[0]
    assert (change.name, change.before.mean, change.after.mean) == (f"sharpness + 2 × brightness{unit}", *levels[:2])
    found = read_evaluation(run.layout, 1)
    printed = average_evaluation(found, run.config, read_weights(run.layout, run.config, 1))
    assert (printed.reward_training, printed.in_deviations) == (levels[1], bool(unit))


def test_sums_in_different_units_are_not_compared(tmp_path):
    runs = [open_compared(write_two_rewards(tmp_path / combine, combine)) for combine in ("sum", "normalised")]
    table = tabulate(compare_runs(runs))
    assert [list(method["held_out"]["rewards"]) for method in table["methods"]] == [["sharpness", "brightness"]] * 2
    assert any(note.startswith("no sum of the held-out rewards") for note in table["notes"])


def check_spreads(value):
    """A mean lies in the range of its seeds and in its interval, wherever one is told."""
    if isinstance(value, dict) and "lowest" in value:
        assert math.isclose(value["mean"], np.mean(value["of_each_seed"]), abs_tol=1e-12)
        assert value["lowest"] - 1e-12 <= value["mean"] <= value["highest"] + 1e-12
        assert (value["interval"] is None) == (len(value["of_each_seed"]) == 1)
        if value["interval"]:
            assert value["interval"][0] <= value["mean"] <= value["interval"][1]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_spreads(item)
