"""The sampler of continuous-time consistency models: what the conformance suite does not say of it."""

from __future__ import annotations

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from pydantic import ValidationError

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, PipelineCall, explain_no_actions, read_setting, write_setting
from rlcm_cli.samplers.scm import SAMPLER, ScmSettings, scm_schedule

NOISE = Noise(diffusers.SCMScheduler().config)


def make_schedule(steps, last_std=0.0, **settings):
    return SAMPLER.schedule(ScmSettings(**settings), NOISE, steps, last_std)


def test_the_two_steps_of_the_makers_are_at_their_times():
    schedule = make_schedule(2)
    assert schedule.timesteps.tolist() == pytest.approx([1.0, 0.78271], abs=4e-6)
    assert schedule.initial_scale == pytest.approx(1.0000037, abs=1e-7)
    assert schedule.actions == 1


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_other_numbers_of_steps_are_evenly_spaced(steps):
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(steps, intermediate_timesteps=None)
    angles = scheduler.timesteps[:-1].double()
    assert make_schedule(steps).timesteps.tolist() == (angles.sin() / (angles.sin() + angles.cos())).tolist()


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9, 1.0])
def test_a_step_keeps_the_noise_level_at_every_strength(eta):
    """Of the latents of an image and noise, with the right output, the next latents have the next level."""
    angles = torch.tensor([1.5, 1.1, 0.4, 0.0], dtype=torch.float64)
    schedule = scm_schedule(angles, torch.full((3,), eta, dtype=torch.float64))
    levels = [*schedule.timesteps.tolist(), 0.0]
    image, fresh = 0.7, -1.3
    for call, (now, then) in enumerate(pairwise(levels)):
        latents = (1 - now) * image + now * fresh
        mean = schedule.latents_coef[call] * latents + schedule.output_coef[call] * (fresh - image)
        kept = then * math.cos(eta * math.pi / 2)
        assert float(mean) == pytest.approx((1 - then) * image + kept * fresh, abs=1e-12)
        assert float(schedule.std[call]) ** 2 + kept**2 == pytest.approx(then**2, abs=1e-12)


def test_the_first_latents_have_the_length_that_the_pipeline_gives_them():
    schedule = make_schedule(1, angles=[math.pi / 4])
    assert schedule.timesteps.tolist() == pytest.approx([0.5])
    assert schedule.initial_scale == pytest.approx(math.sqrt(0.5))


def test_angles_can_be_given_and_a_pipeline_takes_up_to_two():
    schedule = make_schedule(3, angles=[1.57, 1.3, 0.6])
    wanted = torch.tensor([1.57, 1.3, 0.6]).double()
    assert schedule.timesteps.tolist() == pytest.approx((wanted.tan() / (wanted.tan() + 1)).tolist())
    assert SAMPLER.in_diffusers(ScmSettings(angles=(1.5, 1.2)), NOISE, 2) == PipelineCall(
        "SCMScheduler", {"num_inference_steps": 2, "max_timesteps": 1.5, "intermediate_timesteps": 1.2}
    )
    assert SAMPLER.in_diffusers(ScmSettings(angles=(1.5,)), NOISE, 1).arguments["max_timesteps"] == 1.5
    assert SAMPLER.in_diffusers(ScmSettings(angles=(1.57, 1.3, 0.6)), NOISE, 3) is None
    assert read_setting(write_setting((1.57, 1.3))) == (1.57, 1.3)


def test_diffusers_has_only_the_full_noise():
    assert SAMPLER.in_diffusers(ScmSettings(eta=0.5), NOISE, 2) is None
    assert SAMPLER.in_diffusers(ScmSettings(window=(0,)), NOISE, 2) is None
    arguments = {"num_inference_steps": 4, "max_timesteps": 1.5708, "intermediate_timesteps": None}
    assert SAMPLER.in_diffusers(ScmSettings(), NOISE, 4).arguments == arguments


def test_a_window_leaves_the_other_calls_deterministic():
    schedule, plain = make_schedule(4, window=(1,)), make_schedule(4, eta=0.0)
    assert schedule.action_calls.tolist() == [1]
    for call in (0, 2, 3):
        assert schedule.output_coef[call] == plain.output_coef[call]
    assert make_schedule(4, last_std=0.1).action_calls.tolist() == [0, 1, 2, 3]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ConfigError, match=r"sampler.angles are \[1.5, 1.2\], and sample.steps is 4: they are one for"):
        make_schedule(4, angles=[1.5, 1.2])
    with pytest.raises(ConfigError, match=r"sample\.steps is 1001, more than the 1000 timesteps"):
        make_schedule(1001)
    with pytest.raises(ValidationError, match="each has to be below the one before"):
        ScmSettings(angles=[1.2, 1.2])
    with pytest.raises(ValidationError, match=r"less than or equal to 1\.5708"):
        ScmSettings(angles=[1.6])
    assert "use --steps 2 or more" in str(explain_no_actions(ScmSettings(), 1))
