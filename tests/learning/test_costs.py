"""One count of model forwards: what metrics say, what is estimated before, and what a projection multiplies."""

import itertools

import pytest
import torch
from phase_runs import finish, make_config

from rlcm_cli.config import override_config
from rlcm_cli.core.throughput import Work
from rlcm_cli.learning.costs import count_training_calls, count_work
from rlcm_cli.learning.log_probs import refresh_passes
from rlcm_cli.phases import loop as loop_module
from rlcm_cli.phases.evaluate import plan_evaluation
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run

SECTIONS = {
    "ppo": {"train": {"kl_weight": 0.1, "inner_epochs": 2, "timestep_fraction": 0.1}},
    "grpo": {"train": {"minibatch_size": 4}},
    "rebel": {"train": {"minibatch_size": 4}},
    "rwr": {},
}


def configure(folder, kind, dtype="float32"):
    config = make_config(folder, objective={"kind": kind}, sample={"group_size": 2}, **SECTIONS[kind])
    return override_config(config, flags={"model.dtype": dtype})


def draw(root, config):
    """Make a run whose next phase is train, and give it with its model."""
    run, model = create_run(root, config), load_policy_model(config)
    finish(sample(run, model))
    finish(score(run, load_scorers(run)))
    return run, model


@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_forwards_of_an_iteration_are_those_that_are_made(tiny_lcm, tmp_path, monkeypatch, kind, dtype):
    config = configure(tiny_lcm, kind, dtype)
    run, model = draw(tmp_path / "run", config)
    asked, predict = [], model.predict

    def counted(latents, *given, **named):
        # Of a pass with a gradient the backward pass counts twice.
        asked.append(len(latents) * (3 if torch.is_grad_enabled() else 1))
        return predict(latents, *given, **named)

    monkeypatch.setattr(model, "predict", counted)
    metrics = finish(train(run, model))[-1].metrics
    drawing = 8 * 4
    assert metrics.forwards == drawing + sum(asked)
    assert sum(asked) == count_training_calls(config, 3, refreshes=refresh_passes(config))


@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_of_the_same_forwards(tiny_lcm, tmp_path, monkeypatch, kind, dtype):
    config = configure(tiny_lcm, kind, dtype)
    run, model = create_run(tmp_path / "run", config), load_policy_model(config)
    seconds = itertools.count()
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: next(seconds))  # each timed call takes a second
    found = loop_module.estimate_cost(run, model, 5).seconds * config.sample.batch_size
    evaluations = 2 * len(plan_evaluation(config, run.prompts)) * 4
    trained = count_training_calls(config, 3, refreshes=refresh_passes(config))
    assert found == pytest.approx(5 * (8 * 4 + trained) + evaluations)


def test_the_work_of_a_task(tiny_lcm):
    config = make_config(
        tiny_lcm, train={"inner_epochs": 2, "timestep_fraction": 0.5, "minibatch_size": 4}, runtime={"iterations": 10}
    )
    assert count_work(config, 3) == Work(images=80, calls=4, transitions=80 * 2 * 2)
    # In 16 bits a pass over all transitions takes their old log-probabilities again.
    coarse = override_config(config, flags={"model.dtype": "bfloat16"})
    assert count_work(coarse, 3) == Work(images=80, calls=4 + 3, transitions=80 * 2 * 2)
