"""The schedule of a model's sampler: what is refused before anything is drawn."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers.schedulers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, TCDScheduler
from pydantic import ValidationError

from rlcm_cli.core.schedule import Schedule
from rlcm_cli.errors import ConfigError
from rlcm_cli.models.schedules import build_schedule
from rlcm_cli.samplers import SAMPLERS, Noise
from rlcm_cli.samplers.ddim import DdimSettings

SCHEDULERS = {"lcm": LCMScheduler, "ddim": DDIMScheduler, "tcd": TCDScheduler}


def make_model(sampler: str, **settings) -> SimpleNamespace:
    """What a schedule is built from: a sampler and a scheduler."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = SCHEDULERS[sampler](**{**betas, **settings})
    return SimpleNamespace(sampler=SAMPLERS[sampler], noise=Noise(scheduler.config, scheduler.alphas_cumprod))


def build(model, steps=4, **settings):
    return build_schedule(model, model.sampler.settings(**settings), steps)


@pytest.mark.parametrize("sampler", ["lcm", "tcd", "ddim"])
def test_a_prediction_of_noise_without_any_signal_is_refused(sampler):
    settings = {"timestep_spacing": "trailing"} if sampler == "ddim" else {}
    model = make_model(sampler, rescale_betas_zero_snr=True, prediction_type="epsilon", **settings)
    with pytest.raises(ConfigError, match=r"rescale_betas_zero_snr.*prediction_type epsilon.*set .* to false"):
        build(model)
    for prediction_type in ("v_prediction", "sample"):
        model = make_model(sampler, rescale_betas_zero_snr=True, prediction_type=prediction_type, **settings)
        assert build(model).find_fault() is None


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_each_number_of_steps_can_be_drawn(sampler, prediction_type):
    model = make_model(sampler, prediction_type=prediction_type)
    for steps in range(1, 51):
        schedule = build(model, steps, **({"gamma": 1.0} if sampler == "tcd" else {}))
        assert (schedule.steps, schedule.actions) == (steps, steps - 1)


def test_betas_that_are_not_finite_are_refused():
    model = make_model("ddim")
    model.noise.alphas_cumprod[600:] = torch.nan
    with pytest.raises(ConfigError, match=r"no image can be drawn.*NaN or infinite; check the noise levels"):
        build(model)


def test_a_first_timestep_beyond_the_training_is_refused():
    with pytest.raises(ConfigError, match=r"steps_offset of 1 the first timestep is 1000.*use fewer steps"):
        build(make_model("ddim", steps_offset=1), 1000)
    assert build(make_model("ddim"), 1000).find_fault() is None


@pytest.mark.parametrize("eta", [1.001, 1.2, -0.1])
def test_eta_is_at_most_1(eta):
    with pytest.raises(ValidationError):
        DdimSettings(eta=eta)


def test_a_model_without_alpha_bar_needs_a_sampler_that_does_without():
    """A flow-matching scheduler states neither ᾱ nor what is predicted."""
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noise = Noise(own.config)

    def follow_the_flow(settings, noise, steps, last_std):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        now, then = sigmas[:-1], sigmas[1:]
        return Schedule(1000 * now, 1000 * then, 1 - then, -now * (1 - then), then)

    sampler = dataclasses.replace(SAMPLERS["lcm"], schedule=follow_the_flow)
    schedule = build_schedule(SimpleNamespace(sampler=sampler, noise=noise), sampler.default_settings(), 4)
    assert (schedule.timesteps.tolist(), schedule.actions) == ([1000.0, 750.0, 500.0, 250.0], 3)

    for kind in SCHEDULERS:
        one = SAMPLERS[kind]
        with pytest.raises(ConfigError, match=r"has no ᾱ .*--sampler") as caught:
            build_schedule(SimpleNamespace(sampler=one, noise=noise), one.default_settings(), 4)
        assert "\n" not in str(caught.value), kind

    broken = dataclasses.replace(sampler, schedule=lambda *given: dataclasses.replace(schedule, std=schedule.std / 0))
    with pytest.raises(ConfigError, match="no image can be drawn with this schedule: the model call at timestep 1000"):
        build_schedule(SimpleNamespace(sampler=broken, noise=noise), sampler.default_settings(), 4)
