"""How a benchmark tunes its methods: the order of the trials, their number, and which one is chosen."""

import json

import pytest

from examples.benchmark.plan import read_plan, read_tunings
from examples.benchmark.results import results_folder
from examples.benchmark.tuning import Space, Trial, choose, is_at_edge, next_trial

SPACE = Space((1e-3, 2e-3, 4e-3), ((), ("objective.beta=0.5",), ("objective.beta=8.0",)), 8)
PLAN = """
[tasks.small]
preset = "compression"
reward = { compressibility = 1.0, recognition = 2.0 }

[methods.rwr]
settings = ["objective.kind=rwr"]
knob = [["objective.beta=2.0"], ["objective.beta=0.5"]]

[methods.longer]
settings = ["objective.kind=rwr"]
tuned_as = "rwr"

[[tuning]]
task = "small"
models = ["emoji-lcm"]
methods = ["rwr"]
seeds = [1, 2]
processor_seconds = 10
learning_rates = [1e-3, 2e-3]
trials = 3

[[runs]]
tasks = ["small"]
models = ["emoji-lcm"]
methods = ["rwr", "longer"]
seeds = [3]
tuned = true
"""


def tune(space, score):
    """Tune on a made-up score of (learning rate, knob); give the trials in their order."""
    scores = {}
    while trial := next_trial(space, scores):
        scores[trial] = score(trial.learning_rate, trial.knob)
    return scores


class TestTrials:
    def test_a_grid_then_the_knob_then_rates_beside_the_best(self):
        scores = tune(SPACE, lambda rate, knob: -abs(rate - 2e-3) + (knob == 2))
        assert list(scores) == [
            Trial(1e-3),
            Trial(2e-3),
            Trial(4e-3),
            Trial(2e-3, 1),
            Trial(2e-3, 2),
            Trial(2.8e-3, 2),
            Trial(1.4e-3, 2),
        ]
        assert choose(SPACE, scores) == Trial(2e-3, 2)
        assert not is_at_edge(SPACE, scores)

    @pytest.mark.parametrize(("best", "added"), [(1e-2, [8e-3, 1.6e-2]), (1e-6, [5e-4, 2.5e-4])])
    def test_the_grid_grows_twice_where_its_edge_is_best(self, best, added):
        scores = tune(SPACE, lambda rate, knob: -abs(rate - best) - knob)
        rates = [trial.learning_rate for trial in scores]
        assert rates[3:5] == added
        assert len(scores) == SPACE.trials

    def test_a_best_rate_beyond_all_is_said_to_be_at_the_edge(self):
        assert is_at_edge(SPACE, tune(SPACE, lambda rate, knob: rate - knob))

    @pytest.mark.parametrize("peak", [1e-6, 1.4e-3, 2e-3, 1e-1])
    @pytest.mark.parametrize("favourite", [0, 1, 2])
    def test_every_tuning_ends_with_trials_that_are_known(self, peak, favourite):
        scores = tune(SPACE, lambda rate, knob: -abs(rate - peak) + (knob == favourite) / 1000)
        assert set(scores) <= set(SPACE.all_trials())
        assert 7 <= len(scores) <= SPACE.trials

    def test_a_method_whose_trials_all_failed_ends_as_well(self):
        assert len(tune(SPACE, lambda rate, knob: float("-inf"))) >= 7

    def test_nothing_is_chosen_before_the_end(self):
        assert choose(SPACE, {Trial(1e-3): 1.0, Trial(2e-3): 2.0}) is None


class TestPlan:
    def write(self, folder, *scores):
        plan = folder / "plan.toml"
        plan.write_text(PLAN)
        results_folder(plan).mkdir(parents=True)
        (tuning,) = read_tunings(plan)
        for trial, score in scores:
            for cell in tuning.runs_of(trial):
                found = {"reward": cell.reward, "points": [{"all": {"compressibility": score, "recognition": 0.5}}]}
                (results_folder(plan) / f"{cell.name}.json").write_text(json.dumps(found))
        return plan, tuning

    def test_reported_runs_wait_for_the_tuning(self, tmp_path):
        plan, tuning = self.write(tmp_path, (Trial(1e-3), -2.0))
        assert tuning.scores(results_folder(plan)) == {Trial(1e-3): -1.0}
        assert next_trial(tuning.space, tuning.scores(results_folder(plan))) == Trial(2e-3)
        assert read_plan(plan) == []

    def test_and_take_what_it_chose(self, tmp_path):
        plan, tuning = self.write(tmp_path, (Trial(1e-3), -2.0), (Trial(2e-3), -3.0), (Trial(5e-4), -1.0))
        cell, longer = read_plan(plan)
        assert (longer.name, longer.settings) == ("small-emoji-lcm-longer-3", cell.settings)
        assert (cell.name, cell.trial) == ("small-emoji-lcm-rwr-3", None)
        assert cell.settings == ("objective.kind=rwr", "train.learning_rate=0.0005", "objective.beta=2.0")
        assert [one.name for one in tuning.runs_of(Trial(2e-3, 1))] == [
            "small-emoji-lcm-rwr-lr0.002-k1-1",
            "small-emoji-lcm-rwr-lr0.002-k1-2",
        ]

    def test_a_trial_with_one_of_two_seeds_has_no_score(self, tmp_path):
        plan, tuning = self.write(tmp_path, (Trial(1e-3), -2.0))
        (results_folder(plan) / f"{tuning.runs_of(Trial(1e-3))[0].name}.json").unlink()
        assert tuning.scores(results_folder(plan)) == {}

    def test_a_run_that_failed_is_below_all_others(self, tmp_path):
        plan, tuning = self.write(tmp_path, (Trial(1e-3), -2.0))
        file = results_folder(plan) / f"{tuning.runs_of(Trial(1e-3))[0].name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "failed": "the loss is NaN"}))
        assert tuning.scores(results_folder(plan)) == {Trial(1e-3): float("-inf")}
