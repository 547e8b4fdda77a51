import numpy as np
import pytest
import torch
from phase_runs import copy_run, finish, make_config, make_loop, raw_bytes, shared_model

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ForeignFileError
from rlcm_cli.events import Evaluated
from rlcm_cli.phases.evaluate import evaluate, plan_evaluation, score_evaluations
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.runs.inputs import read_prompts
from rlcm_cli.runs.run import Run, open_run
from rlcm_cli.store.evaluations import comparable_evaluations, publish_evaluation, read_evaluation
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.quarantine import quarantine


def evaluations(root):
    layout = RunLayout(root)
    return [read_evaluation(layout, number) for number in layout.evaluations()]


def test_every_checkpoint_is_evaluated_with_the_same_prompts_and_seeds(finished_run):
    first, last = evaluations(finished_run)
    assert (first.checkpoint, last.checkpoint) == (0, 2)
    assert first.prompts == last.prompts
    assert np.array_equal(first.seed, last.seed)
    assert np.array_equal(first.held_out, last.held_out)
    assert first.policy_digest != last.policy_digest


def test_the_pictures_differ_by_the_policy_alone(tiny_lcm, tmp_path):
    run = make_loop(tmp_path / "run", make_config(tiny_lcm, train={"learning_rate": 0.3}, runtime={"iterations": 1}))
    first, last = (read_evaluation(run.layout, number) for number in (0, 1))
    assert not np.array_equal(first.images, last.images)
    quarantine(run.layout.evaluation(0))
    finish(evaluate(run, shared_model(tiny_lcm), load_scorers(run), 0))
    assert np.array_equal(read_evaluation(run.layout, 0).images, first.images)


@pytest.mark.parametrize(("prompts", "held_out"), [(3, 1), (9, 3), (45, 4), (1, 0), (2, 0)])
def test_a_third_at_most_of_the_prompts_are_held_out_ones(tiny_lcm, prompts, held_out):
    config = make_config(tiny_lcm, evaluate={"prompts": prompts, "images_per_prompt": 2})
    (own,) = read_prompts(config).values()
    training, kept_out = own.training, own.held_out
    plan = plan_evaluation(config, {config.task: own})
    assert len(plan) == min(prompts, len(training) + held_out) * 2
    assert len({fixed.seed for fixed in plan}) == len(plan)
    for fixed in plan:
        assert fixed.task == config.task
        assert fixed.prompt in (kept_out if fixed.held_out else training)
    assert sum(fixed.held_out for fixed in plan) == held_out * 2
    assert [fixed.group for fixed in plan] == [number for number in range(len(plan) // 2) for _ in range(2)]
    assert all(plan[row].prompt == plan[row + 1].prompt for row in range(0, len(plan), 2))


def test_no_held_out_prompt_is_ever_trained_on(finished_run):
    layout = RunLayout(finished_run)
    (own,) = open_run(layout.root).prompts.values()
    held_out = own.held_out
    drawn = {prompt for iteration in (0, 1) for prompt in read_manifest(layout.manifest(iteration)).prompts}
    assert len(drawn) == 16
    assert not drawn & set(held_out)
    (first, _) = evaluations(layout.root)
    assert set(held_out) & set(first.prompts)


def test_the_summary_averages_training_and_held_out_prompts_apart(tiny_lcm, finished_run):
    run = open_run(finished_run)
    (event,) = finish(evaluate(run, shared_model(tiny_lcm), load_scorers(run), 2))
    evaluation = read_evaluation(run.layout, 2)
    total = evaluation.rewards["compressibility"]
    assert event.reward_training == pytest.approx(total[~evaluation.held_out].mean().item())
    assert event.reward_held_out == pytest.approx(total[evaluation.held_out].mean().item())
    assert event.components == {"compressibility": pytest.approx(total.mean().item())}


def test_without_held_out_prompts_there_is_no_such_mean(tiny_lcm, tmp_path):
    config = make_config(tiny_lcm, prompts={"held_out_fraction": 0.0}, runtime={"iterations": 1})
    run = make_loop(tmp_path / "run", config)
    (event,) = finish(evaluate(run, shared_model(tiny_lcm), load_scorers(run), 1))
    assert event.reward_held_out is None


def test_an_evaluation_of_another_policy_is_refused_and_made_again_after_quarantine(tiny_lcm, finished_run, tmp_path):
    run = copy_run(finished_run, tmp_path / "run")
    path, model, rewards = run.layout.evaluation(2), shared_model(tiny_lcm), load_scorers(run)
    expected = path.read_bytes()
    other = read_evaluation(run.layout, 0)
    for file in (path, receipt_path(path)):
        file.unlink()
    publish_evaluation(run.layout, type(other)(**{**vars(other), "checkpoint": 2}))
    before = raw_bytes(run.layout.root)
    with pytest.raises(ForeignFileError, match=r"was drawn with another policy; .*`rlcm quarantine .*evaluations"):
        finish(evaluate(run, model, rewards, 2))
    assert raw_bytes(run.layout.root) == before
    quarantine(path)
    finish(evaluate(run, model, rewards, 2))
    assert path.read_bytes() == expected


class TestLaterRewards:
    @pytest.fixture
    def run(self, finished_run, tmp_path):
        return copy_run(finished_run, tmp_path / "run")

    def watch(self, run, name="sharpness", **settings):
        values = run.config.model_dump(mode="json")
        values["monitor"]["rewards"] = [name]
        values["reward_settings"] = {name: settings} if settings else {}
        return Run(run.layout, parse_config(values))

    def test_stored_images_get_a_reward_without_a_model_and_once(self, run):
        watching, before = self.watch(run), raw_bytes(run.layout.root)
        scorers = {"sharpness": load_scorers(watching, ["sharpness"])["sharpness"]}
        events = finish(score_evaluations(watching, scorers, [0, 2]))
        found = read_evaluation(run.layout, 2)
        expected = scorers["sharpness"].reward.function(torch.from_numpy(found.images), found.prompts, [])
        assert found.rewards["sharpness"].tolist() == expected.tolist()
        assert [event.components["sharpness"] for event in events if isinstance(event, Evaluated)] == [
            pytest.approx(read_evaluation(run.layout, number).rewards["sharpness"].mean().item()) for number in (0, 2)
        ]
        after = raw_bytes(run.layout.root)
        assert before.items() <= after.items()
        assert len(after) == len(before) + 4  # a record and its receipt for each
        finish(score_evaluations(watching, scorers, [0, 2]))
        assert raw_bytes(run.layout.root) == after

    def test_other_settings_are_another_reward_and_all_evaluations_that_have_it_follow(self, run):
        first = self.watch(run, "recognition", floor=-1.0)
        finish(score_evaluations(first, load_scorers(first, ["recognition"]), [0, 2]))
        old = read_evaluation(run.layout, 0)
        second = self.watch(run, "recognition", floor=-2.0)
        finish(score_evaluations(second, load_scorers(second, ["recognition"]), [2]))
        new = [read_evaluation(run.layout, number) for number in (0, 2)]
        assert new[0].rewards["recognition"].tolist() != old.rewards["recognition"].tolist()
        assert new[0].revisions == new[1].revisions != old.revisions
        assert comparable_evaluations(new) == new

    def test_a_foreign_evaluation_is_refused(self, run):
        path = run.layout.evaluation(2)
        other = read_evaluation(run.layout, 0)
        for file in (path, receipt_path(path)):
            file.unlink()
        publish_evaluation(run.layout, type(other)(**{**vars(other), "checkpoint": 2}))
        watching = self.watch(run)
        with pytest.raises(ForeignFileError, match="was drawn with another policy"):
            finish(score_evaluations(watching, load_scorers(watching, ["sharpness"]), [2]))
