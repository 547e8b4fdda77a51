"""What a schedule of training refuses: whatever leaves an objective nothing to learn from."""

import dataclasses

import pytest
from phase_runs import shared_model

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import OBJECTIVES
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.schedules import training_schedule


@pytest.fixture(scope="module")
def teacher():
    """The embedded diffusion model, sampled with DDIM."""
    return load_policy_model(plain_config("emoji-diffusion", sampler={"kind": "ddim"}))


def plain_config(name, **sections):
    values = {"task": "compression", "rewards": {"compressibility": 1.0}, "runtime": {"device": "cpu"}}
    return parse_config({**values, **sections, "model": {"name": str(name)}})


def refused(config, model):
    """Give the message of the refusal."""
    with pytest.raises(ConfigError) as caught:
        training_schedule(config, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWhatMakesNoSense:
    def test_ddim_without_noise(self, teacher):
        message = refused(plain_config("emoji-diffusion", sampler={"kind": "ddim", "eta": 0.0}), teacher)
        assert "sampler.eta is 0: no step of the sampler ddim draws noise" in message

    @pytest.mark.parametrize("mode", ["noise", "backprop"])
    def test_a_last_step_of_its_own_where_ddim_draws_noise_in_all(self, teacher, mode):
        message = refused(plain_config("emoji-diffusion", sampler={"kind": "ddim"}, last_step={"mode": mode}), teacher)
        assert f"last_step.mode {mode}" in message
        assert "ddim" in message

    def test_ddim_of_more_steps_than_it_was_trained_with(self, teacher):
        message = refused(plain_config("emoji-diffusion", sampler={"kind": "ddim"}, sample={"steps": 1001}), teacher)
        assert "sample.steps is 1001, more than the 1000 timesteps" in message

    @pytest.mark.parametrize(
        ("sections", "words"),
        [
            (
                {"train": {"actions": [0, 3]}},
                "train.actions names the action 3, and the policy gradient has 0 to 2 of the 4 calls",
            ),
            (
                {"sample": {"steps": 2}, "train": {"actions": [1]}},
                "train.actions names the action 1, and the policy gradient has just 0 of the 2 calls",
            ),
            ({"sample": {"steps": 1}}, "sample.steps is 1: no step of the sampler lcm draws noise"),
            ({"sample": {"steps": 51}}, "sample.steps is 51, more than the schedule's 50 (sampler.original_steps)"),
            (
                {"sampler": {"kind": "lcm", "original_steps": 1001}},
                "sampler.original_steps is 1001, more than the 1000 timesteps",
            ),
        ],
    )
    def test_an_lcm_of_too_few_or_too_many_steps(self, tiny_lcm, sections, words):
        assert words in refused(plain_config(tiny_lcm, **sections), shared_model(tiny_lcm))

    @pytest.mark.parametrize(("gamma", "steps"), [(0.0, 4), (0.3, 1)])
    def test_tcd_without_noise(self, gamma, steps):
        sampler = {"kind": "tcd", "gamma": gamma}
        settings = plain_config("emoji-diffusion", sampler=sampler, sample={"steps": steps})
        message = refused(settings, load_policy_model(settings))
        assert "no step of the sampler tcd draws noise" in message
        assert f"sampler.gamma is {gamma:g}" in message

    def test_an_lcm_of_one_step_has_an_action_where_noise_is_added(self, tiny_lcm):
        config = plain_config(tiny_lcm, sample={"steps": 1}, last_step={"mode": "noise"})
        assert training_schedule(config, shared_model(tiny_lcm)).actions == 1


def test_an_objective_that_needs_no_actions_is_drawn_by_any_sampler(teacher, monkeypatch):
    free = dataclasses.replace(OBJECTIVES["ppo"], needs=frozenset())
    monkeypatch.setattr("rlcm_cli.runs.schedules.find_objective", lambda config: free)
    config = plain_config("emoji-diffusion", sampler={"kind": "ddim", "eta": 0.0})
    assert training_schedule(config, teacher).actions == 0
