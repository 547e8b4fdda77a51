"""Comparing runs: the curves, what a reward costs, which runs are of a kind, the numbers and the picture."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from compared_runs import write_evaluation, write_run
from conftest import edit_config
from matplotlib.figure import Figure
from PIL import Image

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.report.compare.comparison import compare_runs
from rlcm_cli.report.compare.curves import Curve, average_curves, find_crossing, price_at, trace_curve
from rlcm_cli.report.compare.picture import COLOURS, DASHES, choose_unit, count_columns, draw_comparison
from rlcm_cli.report.compare.runs import SettingRow, group_runs, open_compared
from rlcm_cli.report.compare.samples import ImageRow, write_samples
from rlcm_cli.report.compare.table import check_folder, tabulate, write_table
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics, read_iteration_metrics

SLOW = {"train": {"learning_rate": 2e-4}}
NOT_EVALUATED = "no held-out rewards: they need two evaluations to compare"
TWO_REWARDS = {"compressibility": 1.0, "recognition": 2.0}


def compare(*roots: Path, **options):
    return compare_runs([open_compared(root) for root in roots], **{"window": 1, **options})


def table_of(*roots: Path, **options):
    return tabulate(compare(*roots, **options))


def spread(*of_each_seed: float, half: float):
    mean = sum(of_each_seed) / len(of_each_seed)
    return {
        "mean": mean,
        "lowest": min(of_each_seed),
        "highest": max(of_each_seed),
        "interval": pytest.approx([mean - half, mean + half]),
        "of_each_seed": list(of_each_seed),
    }


@pytest.fixture
def figures(monkeypatch):
    figures, save = [], Figure.savefig

    def note(figure, *arguments, **options):
        figures.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


class TestCurves:
    def test_a_policy_has_cost_the_iterations_before_it(self):
        curve = trace_curve([1.0, 2.0, 6.0, 8.0], {"queries": [10, 20, 30, 40]}, window=2)
        assert curve.prices == {"queries": (0, 10, 30, 60, 100)}
        assert curve.rewards == (1.0, 1.5, 4.0, 7.0)

    def test_seeds_are_averaged_as_far_as_the_shortest_goes(self):
        mean = average_curves(
            [Curve((0.0, 2.0, 9.0), {"s": (0.0, 1.0, 2.0, 3.0)}, 1), Curve((2.0, 6.0), {"s": (0.0, 3.0, 6.0)}, 1)]
        )
        assert mean == Curve((1.0, 4.0), {"s": (0.0, 2.0, 4.0)}, 1)

    @pytest.mark.parametrize(
        ("rewards", "target", "found"),
        [
            ((0.0, 1.0, 3.0), 2.0, 1.5),
            ((0.0, 1.0, 3.0), 3.0, 2.0),
            ((0.0, 2.0, 1.0, 2.0), 1.0, 0.5),  # the first time, although it falls again
            ((1.0, 2.0), 1.0, 0.0),
            ((0.0, 1.0), 1.5, None),
        ],
    )
    def test_a_target_is_reached_on_a_straight_line(self, rewards, target, found):
        assert find_crossing(Curve(rewards, {}, 1), target) == found

    def test_a_lucky_start_reaches_nothing(self):
        """The first point is of one iteration, where the curve asks for the mean of three."""
        lucky = trace_curve([9.0, 0.0, 0.0, 3.0, 9.0, 0.0], {}, window=3)
        assert lucky.rewards == (9.0, 4.5, 3.0, 1.0, 4.0, 4.0)
        assert find_crossing(lucky, 4.0) == 4.0
        assert find_crossing(lucky, 3.0) == 2.0

    def test_a_run_shorter_than_the_window_can_reach_a_target_at_its_end(self):
        assert find_crossing(trace_curve([0.0, 2.0, 4.0, 6.0], {}, window=5), 5.0) == 3.0

    @pytest.mark.parametrize(("iteration", "price"), [(0.0, 0.0), (0.5, 5.0), (1.25, 15.0), (2.0, 30.0)])
    def test_prices_between_iterations_lie_on_a_straight_line(self, iteration, price):
        assert price_at((0.0, 10.0, 30.0), iteration) == price


class TestNumbers:
    def test_two_methods(self, tmp_path):
        """The fast one goes 1 up an iteration, the slow one 0.5, which costs ten times as much."""
        fast = write_run(tmp_path / "fast", [-4.0, -3.0, -2.0, -1.0])
        slow = write_run(tmp_path / "slow", [-4.0, -3.5, -3.0, -2.5], samples=20, seconds=40.0, forwards=1000, **SLOW)
        table = table_of(fast, slow)
        assert table["target"] == -2.5  # the best that the slow one came to
        assert table["costs"] == ["queries", "wall_seconds", "forwards"]
        reach = {method["label"]: method["reach"] for method in table["methods"]}
        alone = {"interval": None, "reached": 1}
        assert reach["fast"] == {
            "queries": {"price": 15.0, "of_each_seed": [15.0], "speed_up": 4.0, **alone},
            "wall_seconds": {"price": 6.0, "of_each_seed": [6.0], "speed_up": 20.0, **alone},
            "forwards": {"price": 150.0, "of_each_seed": [150.0], "speed_up": 20.0, **alone},
        }
        assert reach["slow"] == {
            "queries": {"price": 60.0, "of_each_seed": [60.0], "speed_up": 1.0, **alone},
            "wall_seconds": {"price": 120.0, "of_each_seed": [120.0], "speed_up": 1.0, **alone},
            "forwards": {"price": 3000.0, "of_each_seed": [3000.0], "speed_up": 1.0, **alone},
        }
        total = table["methods"][1]["total"]
        assert [total[cost]["mean"] for cost in table["costs"]] == [80.0, 160.0, 4000.0]

    def test_seeds_are_one_method_with_mean_and_range(self, tmp_path):
        runs = [
            write_run(tmp_path / f"lcm-{seed}", rewards, seed=seed, seconds=float(seed))
            for seed, rewards in ((1, [0.0, 2.0, 4.0]), (2, [0.0, 1.0, 2.0]), (3, [0.0, 0.0, 0.0]))
        ]
        (method,) = table_of(*runs, target=1.5)["methods"]
        assert method["label"] == "lcm"
        assert (method["runs"], method["seeds"]) == (["lcm-1", "lcm-2", "lcm-3"], [1, 2, 3])
        assert method["iterations"] == [3, 3, 3]
        half = 4.302652729911275 * 2 / 3**0.5  # Student's t of 2 degrees of freedom, deviation 2
        assert method["final"] == spread(4.0, 2.0, 0.0, half=half)
        assert method["first"] == spread(0.0, 0.0, 0.0, half=0.0)
        # Seed 3 never gets there, so that no mean tells what it costs.
        assert method["reach"]["wall_seconds"]["price"] is None
        assert method["reach"]["wall_seconds"]["interval"] is None
        assert method["reach"]["wall_seconds"]["reached"] == 2
        assert method["reach"]["wall_seconds"]["of_each_seed"] == [0.75, 3.0, None]
        assert method["reach"]["queries"]["of_each_seed"] == [7.5, 15.0, None]

    def test_a_price_is_the_mean_of_the_seeds_own_not_where_their_mean_curve_gets(self, tmp_path):
        """The mean curve of the second method crosses later than either seed does on average."""
        early = write_run(tmp_path / "a-1", [0.0, 4.0, 4.0, 4.0], seed=1)
        late = write_run(tmp_path / "a-2", [0.0, 0.0, 0.0, 4.0], seed=2)
        steady = write_run(tmp_path / "b", [0.0, 1.0, 2.0, 3.0], **SLOW)
        first, second = table_of(early, late, steady, target=3.0)["methods"]
        assert first["reach"]["queries"] == {
            "price": 17.5,
            "of_each_seed": [7.5, 27.5],
            "interval": pytest.approx([17.5 - 127.0620473, 17.5 + 127.0620473]),  # t is 12.706, the error 10
            "reached": 2,
            "speed_up": 30 / 17.5,
        }
        assert (second["reach"]["queries"]["price"], second["reach"]["queries"]["speed_up"]) == (30.0, 1.0)

    def test_speed_ups_are_over_the_slowest_which_is_named(self, tmp_path):
        fast = write_run(tmp_path / "fast", [0.0, 2.0], seconds=400.0)
        slow = write_run(tmp_path / "slow", [0.0, 2.0], samples=20, **SLOW)
        assert table_of(fast, slow)["slowest"] == {"queries": "slow", "wall_seconds": "fast", "forwards": "fast"}

    @pytest.mark.parametrize("window", [1, 3, 5, 100])
    @pytest.mark.parametrize("count", [2, 3, 4, 7, 20])
    def test_every_run_reaches_the_default_target(self, tmp_path, window, count):
        """Also one alone, one that gets worse, and those of fewer iterations than are averaged."""
        rising = write_run(tmp_path / "up", [0.1 * number for number in range(count)])
        falling = [write_run(tmp_path / f"down-{seed}", [9.7, *([0.3] * (count - 1))], seed=seed) for seed in (1, 2)]
        jagged = write_run(tmp_path / "jagged", [0.3 * (-1) ** number for number in range(count + 1)], **SLOW)
        for runs in ([rising], [rising, jagged], falling, [*falling, jagged, rising]):
            for method in table_of(*runs, window=window)["methods"]:
                assert method["reach"]["queries"]["price"] is not None

    def test_short_runs_are_averaged_over_half_of_their_iterations_which_is_told(self, tmp_path):
        run = write_run(tmp_path / "short", [0.0, 2.0, 4.0, 6.0])
        table = table_of(run, window=5)
        (method,) = table["methods"]
        assert (method["first"]["mean"], method["final"]["mean"], method["windows"]) == (1.0, 5.0, [2])
        assert table["notes"] == ["short: has 4 iterations, so its rewards are means of 2", NOT_EVALUATED]

    def test_best_and_final_are_of_smoothed_rewards(self, tmp_path):
        run = write_run(tmp_path / "run", [0.0, 8.0, 4.0, 0.0])
        (method,) = table_of(run, window=2)["methods"]
        assert (method["best"]["mean"], method["final"]["mean"]) == (6.0, 2.0)

    def test_a_target_that_none_reaches(self, tmp_path):
        table = table_of(write_run(tmp_path / "run", [0.0, 1.0]), target=5.0)
        assert table["methods"][0]["reach"]["queries"] == {
            "price": None,
            "interval": None,
            "reached": 0,
            "of_each_seed": [None],
            "speed_up": None,
        }

    def test_processor_time_stands_in_for_wall_time(self, tmp_path):
        run = write_run(tmp_path / "run", [0.0, 1.0], seconds=4.0)
        table = table_of(run, clock="cpu")
        assert table["costs"] == ["queries", "cpu_seconds", "forwards"]
        assert table["methods"][0]["total"]["cpu_seconds"]["mean"] == 16.0

    def test_a_cost_that_a_run_has_not_recorded_is_left_out_and_said(self, tmp_path):
        new = write_run(tmp_path / "new", [0.0, 1.0])
        old = write_run(tmp_path / "old", [0.0, 1.0], without=("sample_seconds", "forwards"), **SLOW)
        table = table_of(new, old)
        assert table["costs"] == ["queries"]
        assert table["notes"] == [
            "no wall seconds: the metrics of old lack sample_seconds",
            "no forwards: the metrics of old lack forwards",
            NOT_EVALUATED,
        ]

    def test_seeds_of_unequal_length_and_other_prompts_are_said(self, tmp_path):
        long = write_run(tmp_path / "a-1", [0.0, 1.0, 2.0], seed=1)
        short = write_run(tmp_path / "a-2", [0.0, 1.0], seed=2)
        other = write_run(tmp_path / "b", [0.0, 1.0], prompts={"source": "emoji_animals"})
        found = compare(long, short, other)
        assert found.notes == (
            "a: its seeds have 3, 2 iterations, so their best and final rewards are of different amounts of training; "
            "the mean curve ends with the shortest",
            "the methods were trained for different numbers of iterations (a 3, b 2): a shorter run's best and final "
            "rewards may still have been rising",
            NOT_EVALUATED,
        )
        assert found.settings == (SettingRow("prompts.source", {"a": "simple_animals", "b": "emoji_animals"}),)

    def test_means_of_seeds_of_unequal_length_use_each_seed_to_its_end(self, tmp_path):
        long = write_run(tmp_path / "a-1", [0.0, 1.0, 2.0], seed=1)
        short = write_run(tmp_path / "a-2", [0.0, 1.0], seed=2)
        (method,) = table_of(long, short)["methods"]
        assert method["iterations"] == [3, 2]
        assert method["final"]["of_each_seed"] == [2.0, 1.0]
        assert method["total"]["queries"]["of_each_seed"] == [30, 20]

    def test_settings_that_differ_are_listed_without_places_of_this_machine(self, tmp_path):
        one = write_run(tmp_path / "one", [0.0, 1.0], evaluate={"prompts": 8})
        other = write_run(
            tmp_path / "other",
            [0.0, 1.0],
            model={"name": "/home/ann/models/lcm"},
            prompts={"source": "/home/ann/simple_animals"},
            sample={"samples": 32},
            train={"minibatch_size": 32},
        )
        found = compare(one, other)
        values = {row.key: (row.values["one"], row.values["other"]) for row in found.settings}
        assert values == {
            "model.name": ("emoji-lcm", "…/lcm"),
            "prompts.source": ("simple_animals", "…/simple_animals"),
            "sample.samples": ("64", "32"),
            "train.minibatch_size": ("none", "32"),
            "evaluate.prompts": ("8", "45"),
        }
        assert (
            "the methods fine-tune different models (one emoji-lcm, other …/lcm): their rewards differ before any "
            "training"
        ) in found.notes

    def test_settings_that_differ_only_in_what_is_left_out_are_told_apart(self, tmp_path):
        one, other = (
            write_run(tmp_path / name, [0.0, 1.0], prompts={"source": f"/home/{name}/animals.txt"})
            for name in ("ann", "bob")
        )
        (row,) = compare(one, other).settings
        assert row == SettingRow("prompts.source", {"ann": "…/animals.txt (1)", "bob": "…/animals.txt (2)"})

    def test_one_reward_of_runs_that_are_trained_for_others(self, tmp_path):
        mixed = write_run(tmp_path / "mixed", [0.0, 3.0], weights=TWO_REWARDS)
        monitoring = write_run(tmp_path / "monitoring", [0.0, 3.0], monitored={"recognition": [-1.0, -2.0]})
        table = table_of(mixed, monitoring, component="recognition")
        assert table["reward"] == "recognition"
        assert [method["final"]["mean"] for method in table["methods"]] == [1.0, -2.0]

    def test_the_reward_is_named_with_its_weights_but_not_its_folders(self, tmp_path):
        assert (
            compare(write_run(tmp_path / "a", [0.0, 1.0], weights=TWO_REWARDS)).reward
            == "compressibility + 2 × recognition (raw sum; training normalises each reward)"
        )
        summed = write_run(tmp_path / "c", [0.0, 1.0], weights=TWO_REWARDS, combine="sum")
        assert compare(summed).reward == "compressibility + 2 × recognition"
        mine = write_run(tmp_path / "b", [0.0, 1.0], weights={f"{tmp_path}/mine.py:score": 1.0})
        assert compare(mine).reward == "mine.py:score"


class TestEvaluations:
    def write(self, root: Path, seed: int, after: list[float], best: float = 3.0) -> Path:
        """The best checkpoint, 1, is better than the last: the training went on too long."""
        run = write_run(root / f"run-{seed}", [0.0, 1.0], seed=seed, weights=TWO_REWARDS, combine="sum")
        held_out = [True, False, False, True]
        write_evaluation(run, 0, {"compressibility": [1.0, 2, 3, 4], "recognition": [0.0, 0, 0, 0]}, held_out)
        write_evaluation(run, 1, {"compressibility": [9.0, 9, 9, 9], "recognition": [best] * 4}, held_out)
        write_evaluation(run, 2, {"compressibility": after, "recognition": [1.0, 1, 1, 1]}, held_out)
        return run

    def test_the_first_best_and_last_checkpoint_by_the_weighted_sum(self, tmp_path):
        runs = self.write(tmp_path, 1, [2.0, 3, 4, 5]), self.write(tmp_path, 2, [4.0, 5, 6, 9], best=4.0)
        (method,) = table_of(*runs)["methods"]
        found = method["held_out"]
        assert found["checkpoints"] == [{"first": 0, "best": 1, "final": 2}] * 2
        assert list(found["rewards"]) == ["", "compressibility", "recognition"]
        assert found["rewards"][""] == {
            "held_out_seeds": {
                "first": spread(2.5, 2.5, half=0.0),
                "best": spread(15.0, 17.0, half=12.706204736174698),
                "final": spread(5.5, 7.5, half=12.706204736174698),
                "change": spread(3.0, 5.0, half=12.706204736174698),
            },
            "held_out_prompts": {
                "first": spread(2.5, 2.5, half=0.0),
                "best": spread(15.0, 17.0, half=12.706204736174698),
                "final": spread(5.5, 8.5, half=1.5 * 12.706204736174698),
                "change": spread(3.0, 6.0, half=1.5 * 12.706204736174698),
            },
        }
        assert found["rewards"]["recognition"]["held_out_seeds"]["best"]["of_each_seed"] == [3.0, 4.0]

    def test_by_one_reward_the_best_checkpoint_is_still_that_of_what_is_trained_for(self, tmp_path):
        """A judge that was not trained on must not choose the checkpoint that it then judges."""
        (method,) = table_of(self.write(tmp_path, 1, [2.0, 3, 4, 5], best=-2.0), component="recognition")["methods"]
        assert list(method["held_out"]["rewards"]) == ["recognition"]
        assert method["held_out"]["checkpoints"] == [{"first": 0, "best": 2, "final": 2}]
        assert method["held_out"]["rewards"]["recognition"]["held_out_seeds"]["best"]["mean"] == 1.0

    def test_without_held_out_prompts_or_a_second_evaluation(self, tmp_path):
        run = write_run(tmp_path / "run", [0.0, 1.0])
        write_evaluation(run, 0, {"compressibility": [1.0]}, [False])
        table = table_of(run)
        assert table["methods"][0]["held_out"] is None
        assert table["notes"] == [NOT_EVALUATED]
        write_evaluation(run, 1, {"compressibility": [2.0]}, [False])
        found = table_of(run)["methods"][0]["held_out"]["rewards"][""]
        assert found["held_out_seeds"]["final"]["mean"] == 2.0
        assert "held_out_prompts" not in found

    def test_evaluations_before_a_reward_changed_do_not_count(self, tmp_path):
        """Red was scored before, green after: the first that can be compared is the second."""
        run = write_run(tmp_path / "run", [0.0, 1.0])
        for number, (value, revision) in enumerate([(0.821, "red"), (0.5, "green"), (0.773, "green")]):
            write_evaluation(run, number, {"compressibility": [value]}, [False], {"compressibility": revision})
        found = table_of(run)["methods"][0]["held_out"]
        assert found["checkpoints"] == [{"first": 1, "best": 2, "final": 2}]
        reached = found["rewards"][""]["held_out_seeds"]
        assert (reached["first"]["mean"], reached["final"]["mean"]) == (0.5, pytest.approx(0.773))

    def test_other_held_out_images_and_other_versions_of_a_reward_are_said(self, tmp_path):
        one, other = write_run(tmp_path / "one", [0.0, 1.0]), write_run(tmp_path / "other", [0.0, 1.0], **SLOW)
        for number in (0, 1):
            write_evaluation(one, number, {"compressibility": [1.0]}, [False], {"compressibility": "1"})
            write_evaluation(other, number, {"compressibility": [1.0, 1.0]}, [False] * 2, {"compressibility": "2"})
        assert compare(one, other).notes == (
            "the held-out images of the methods differ (one 1 image of 1 prompt, 0 of them kept out "
            "of training, other 2 images of 1 prompt, 0 of them kept out of training)",
            "other: the code, weights or server of compressibility are not those of one, so its values may be another "
            "quantity",
        )

    def test_a_run_without_evaluations_among_others_is_named(self, tmp_path):
        one, other = write_run(tmp_path / "one", [0.0, 1.0]), write_run(tmp_path / "other", [0.0, 1.0], **SLOW)
        for number in (0, 1):
            write_evaluation(one, number, {"compressibility": [1.0]}, [False])
        assert compare(one, other).notes == ("no held-out rewards of other: they need two evaluations to compare",)

    def test_a_run_that_is_hacked_is_said_with_the_checkpoint_to_use(self, tmp_path):
        monitored = {"sharpness": [5.0] * 12 + [1.0] * 12}
        run = write_run(tmp_path / "run", [0.1 * number for number in range(24)], monitored=monitored)
        assert compare(run).notes[-1] == (
            "run: the alarm of sharpness says that its training reward is being hacked; `--checkpoint best` is 9 there"
        )


class TestWhatIsOfAKind:
    def labels(self, *roots: Path, **stated: str):
        opened = [open_compared(root, label=stated.get(root.name, "")) for root in roots]
        return {label: [run.name for run in runs] for label, runs in group_runs(opened).items()}

    def make(self, root: Path, *names: str, **sections):
        return [write_run(root / name, [0.0, 1.0], seed=seed, **sections) for seed, name in enumerate(names)]

    @pytest.mark.parametrize(
        ("names", "label"),
        [
            (("lcm-seed-201", "lcm-seed-202"), "lcm"),
            (("ddpo-20-1", "ddpo-20-2"), "ddpo-20"),
            (("ddpo-50-11", "ddpo-50-12"), "ddpo-50"),
            (("rwr_seed1", "rwr_seed2"), "rwr"),
            (("1", "2"), "mine"),
            (("seed-1", "seed-2"), "mine"),
            (("seed-1",), "mine"),
            (("rate-0.001-seed-1", "rate-0.001-seed-2"), "rate-0.001"),
            (("alone-7",), "alone-7"),
        ],
    )
    def test_a_method_has_the_name_that_its_folders_share(self, tmp_path, names, label):
        assert list(self.labels(*self.make(tmp_path / "mine", *names))) == [label]

    def test_names_that_clash_are_numbered(self, tmp_path):
        runs = self.make(tmp_path / "x", "a"), self.make(tmp_path / "y", "a", **SLOW)
        assert list(self.labels(*runs[0], *runs[1])) == ["a", "a (2)"]

    def test_a_label_names_its_runs(self, tmp_path):
        runs = self.make(tmp_path, "p", "q")
        assert self.labels(*runs, p="DDPO", q="DDPO") == {"DDPO": ["p", "q"]}

    def test_only_seed_runtime_and_what_is_monitored_may_differ(self, tmp_path):
        one = write_run(tmp_path / "one-1", [0.0, 1.0], seed=1, runtime={"iterations": 3})
        two = write_run(tmp_path / "one-2", [0.0, 1.0], seed=2, monitored={"sharpness": [0.0, 1.0]})
        three = write_run(tmp_path / "three", [0.0, 1.0], seed=3, **SLOW)
        assert list(self.labels(one, two, three)) == ["one", "three"]

    def test_a_label_cannot_join_methods(self, tmp_path):
        runs = [*self.make(tmp_path, "p"), *self.make(tmp_path, "q", **SLOW)]
        with pytest.raises(ConfigError, match=r"--label DDPO: .*q and .*p differ in more than their seeds"):
            self.labels(*runs, p="DDPO", q="DDPO")

    def test_nothing_counts_twice(self, tmp_path):
        (run,) = self.make(tmp_path, "run")
        with pytest.raises(ConfigError, match="is given twice"):
            self.labels(run, run / ".." / "run")
        twin = write_run(tmp_path / "twin", [0.0, 1.0])
        with pytest.raises(ConfigError, match=r"twin: has the settings and the seed of .*run"):
            self.labels(run, twin)

    def test_totals_of_other_rewards_are_refused_with_what_could_be_compared(self, tmp_path):
        one, two = (
            write_run(tmp_path / "one", [0.0, 1.0]),
            write_run(tmp_path / "two", [0.0, 1.0], weights=TWO_REWARDS),
        )
        with pytest.raises(ConfigError) as refusal:
            compare(one, two)
        assert str(refusal.value) == (
            f"{two}: is trained for compressibility + 2 × recognition, {one} for compressibility, so their totals "
            "cannot be compared; compare one reward of both by --reward NAME: compressibility"
        )

    def test_other_weights_are_another_reward(self, tmp_path):
        one = write_run(tmp_path / "one", [0.0, 1.0])
        two = write_run(tmp_path / "two", [0.0, 1.0], weights={"compressibility": 2.0})
        with pytest.raises(ConfigError, match="2 × compressibility"):
            compare(one, two)
        assert [method["final"]["mean"] for method in table_of(one, two, component="compressibility")["methods"]] == [
            1.0,
            0.5,
        ]

    def test_other_settings_are_another_reward_also_by_name(self, tmp_path):
        judged = {"recognition": 1.0}
        one = write_run(tmp_path / "one", [0.0, 1.0], weights=judged)
        two = write_run(tmp_path / "two", [0.0, 1.0], weights=judged, reward_settings={"recognition": {"floor": -2.0}})
        for component in (None, "recognition"):
            with pytest.raises(ConfigError, match=r"two: reward 'recognition' has other settings than in .*one"):
                compare(one, two, component=component)

    def test_joint_runs_need_the_same_tasks_and_shares(self, tmp_path):
        def joint(name: str, share: float) -> Path:
            tasks = {"a": {"rewards": {"compressibility": 1.0}, "share": share}, "b": {"rewards": {"sharpness": 1.0}}}
            root = write_run(tmp_path / name, [0.0, 1.0])
            edit_config(root, lambda config: config.update(tasks=tasks, rewards={}))
            return root

        equal, other = joint("equal", 1.0), joint("other", 3.0)
        assert compare(equal).reward == "compressibility (a, share 1), sharpness (b, share 1)"
        with pytest.raises(ConfigError, match="share 3"):
            compare(equal, other)

    def test_a_reward_must_have_been_scored_by_all_and_always(self, tmp_path):
        run = write_run(tmp_path / "run", [0.0, 1.0])
        with pytest.raises(
            ConfigError, match=r"--reward sharpness: .*run has not scored it in training; its rewards are compress"
        ):
            compare(run, component="sharpness")
        late = write_run(tmp_path / "late", [0.0, 1.0], monitored={"sharpness": [0.0, 1.0]})
        row = read_iteration_metrics(RunLayout(late), 1)
        (late / "metrics/000001.json").unlink()
        publish_metrics(RunLayout(late), row.model_copy(update={"monitored": {}}))
        with pytest.raises(ConfigError, match="did not score it in iteration 1"):
            compare(late, component="sharpness")

    @pytest.mark.parametrize("count", [0, 1])
    def test_a_run_needs_two_iterations(self, tmp_path, count):
        run = write_run(tmp_path / "run", [0.0] * count)
        with pytest.raises(MissingFileError, match=f"metrics of {count} iterations?, .*`rlcm loop --run {run}`"):
            compare(run)

    def test_runs_need_a_cost_in_common(self, tmp_path):
        run = write_run(tmp_path / "run", [0.0, 1.0], without=("samples", "score_seconds", "forwards"))
        with pytest.raises(ConfigError, match=r"no cost in common.*lack samples.*lack score_seconds"):
            compare(run)


class TestFolder:
    def test_the_numbers_are_written_and_replaced(self, tmp_path):
        out = tmp_path / "out"
        table = table_of(write_run(tmp_path / "run", [0.0, 1.0]))
        for _ in range(2):
            check_folder(out)
            path = write_table(table, out)
        assert path == out / "compare.json"
        assert json.loads(path.read_text()) == table
        assert str(tmp_path) not in path.read_text()

    @pytest.mark.parametrize("name", ["compare.json", "compare.png", "samples.png"])
    @pytest.mark.parametrize("text", ["not ours", "[]", '{"kind": "other"}'])
    def test_a_file_of_something_else_is_refused(self, tmp_path, name, text):
        (tmp_path / name).write_text(text)
        with pytest.raises(
            ConfigError, match=f"{name}: already exists and is not a file of a comparison; choose another --out"
        ):
            check_folder(tmp_path)

    def test_other_files_do_not_matter(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        check_folder(tmp_path)
        check_folder(tmp_path / "new")


class TestPicture:
    def test_a_panel_a_cost_and_a_line_a_method(self, tmp_path, figures):
        one = write_run(tmp_path / "one-1", [0.0, 1.0, 2.0], seed=1)
        two = write_run(tmp_path / "one-2", [0.0, 3.0, 6.0], seed=2)
        other = write_run(tmp_path / "other", [0.0, 0.5, 1.0], samples=4000, seconds=480.0, **SLOW)
        path = draw_comparison(compare(one, two, other), tmp_path / "out")
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", (2100, 660))
            assert "Software" not in image.info
        queries, wall, forwards = figures[0].axes
        assert [axis.get_xlabel() for axis in (queries, wall, forwards)] == [
            "thousand queries (images scored)",
            "wall time, min",
            "model forwards",
        ]
        lines = {line.get_label(): line.get_xydata().tolist() for line in wall.lines if line.get_label()[0] != "_"}
        assert lines == {"one": [[0, 0], [4 / 60, 2], [8 / 60, 4]], "other": [[0, 0], [8, 0.5], [16, 1]]}
        (band,) = wall.collections
        assert {(round(60 * x), y) for x, y in band.get_paths()[0].vertices} == {
            *((0, 0), (4, 1), (4, 3), (8, 2), (8, 6)),
        }
        rings = [line.get_xydata()[0].tolist() for line in forwards.lines if line.get_marker() == "o"]
        assert rings == [[100, 1], [pytest.approx(100 / 3), 1], [200, 1]]  # each seed's own, at the slow one's best
        assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["one", "other"]
        assert "band: lowest to highest seed; rings: where each seed first reaches 1" in figures[0].get_supxlabel()

    def test_a_single_panel_has_place_for_its_legend(self, tmp_path):
        run = write_run(tmp_path / "run", [0.0, 1.0], without=("sample_seconds", "forwards"))
        with Image.open(draw_comparison(compare(run), tmp_path)) as image:
            assert image.size == (1200, 660)

    def test_many_methods_differ_in_colour_or_dashes(self, tmp_path, figures):
        runs = [write_run(tmp_path / f"run{n}", [0.0, 1.0], train={"learning_rate": n * 1e-4}) for n in range(1, 16)]
        draw_comparison(compare(*runs), tmp_path)
        looks = [(line.get_color(), line._unscaled_dash_pattern) for line in figures[0].axes[0].lines]
        drawn = [
            look for look, line in zip(looks, figures[0].axes[0].lines, strict=True) if line.get_label()[:3] == "run"
        ]
        assert len(drawn) == 15
        assert len({str(look) for look in drawn}) == 15
        assert len({colour for colour, _ in drawn[:7]}) == len({str(dashes) for _, dashes in drawn[:7]}) == 7
        assert len(COLOURS) == len(DASHES) == 7

    @pytest.mark.parametrize(
        ("cost", "most", "unit"),
        [
            ("queries", 2999, 1),
            ("queries", 3000, 1e3),
            ("forwards", 5e6, 1e6),
            ("wall_seconds", 90, 1),
            ("wall_seconds", 1e4, 60),
        ],
    )
    def test_an_axis_has_a_unit_of_which_there_are_several(self, cost, most, unit):
        assert choose_unit(cost, most)[0] == unit

    @pytest.mark.parametrize(("labels", "columns"), [(["a"], 1), (["a" * 10] * 8, 4), (["a" * 200] * 2, 1)])
    def test_a_legend_fits_the_width(self, labels, columns):
        assert count_columns(labels, 6.0) == columns


class TestSamples:
    """Images of one colour each, so that their place on the picture can be told."""

    def rows(self, root: Path) -> list[ImageRow]:
        rows = []
        for index, (method, steps, size) in enumerate((("RLCM", 1, 4), ("RLCM", 2, 4), ("DDPO", 20, 8))):
            folder = root / str(index)
            folder.mkdir()
            for column in range(2):
                Image.new("RGB", (size, size), (100 * index, 50 * column, 0)).save(folder / f"0{column}-cat.png")
            Image.new("RGB", (9, 9)).save(folder / "sheet.png")
            rows.append(ImageRow(method, steps, ["cat", "a dog that has a very long prompt"], folder))
        return rows

    def test_long_names_are_whole(self, tmp_path, figures):
        """Also where a block is a single row, which is lower than the name is long."""
        names = {"RLCM": "compression-rlcm-seeds-of-a-long-name", "DDPO": "a name of several words in one row"}
        write_samples([replace(row, method=names[row.method]) for row in self.rows(tmp_path)], tmp_path / "out")
        for axis in figures[0].axes:
            assert "".join(axis.get_ylabel().split()) in {"".join(name.split()) for name in names.values()}
        with Image.open(tmp_path / "out/samples.png") as image:
            border = image.convert("L").load()
            width, height = image.size
            across = {border[x, y] for x in range(width) for y in (0, 4, height - 5, height - 1)}
            down = {border[x, y] for x in (0, 4, width - 5, width - 1) for y in range(height)}
        assert across | down == {255}

    def test_a_block_a_method_a_row_a_step_count_a_column_a_prompt(self, tmp_path, figures):
        path = write_samples(self.rows(tmp_path), tmp_path / "out")
        assert path == tmp_path / "out/samples.png"
        with Image.open(path) as image:
            assert image.format == "PNG"
        first, second = figures[0].axes
        assert (first.get_ylabel(), second.get_ylabel()) == ("RLCM", "DDPO")
        assert [label.get_text() for label in first.get_yticklabels()] == ["1 step", "2 steps"]
        assert [label.get_text() for label in second.get_yticklabels()] == ["20 steps"]
        (columns,) = first.child_axes
        assert [label.get_text() for label in columns.get_xticklabels()] == ["cat", "a dog that has a very…"]
        shown = first.images[0].get_array()
        assert shown.shape == (8, 8, 3)
        assert [shown[row, column].tolist() for row in (0, 4) for column in (0, 4)] == [
            [0, 0, 0],
            [0, 50, 0],
            [100, 0, 0],
            [100, 50, 0],
        ]
        assert second.images[0].get_array().shape == (8, 16, 3)
