"""Euler's steps for diffusion models: what the conformance suite does not say of them."""

from __future__ import annotations

import diffusers
import pytest
import torch

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, PipelineCall
from rlcm_cli.samplers.euler import SAMPLER, EulerSettings, euler_schedule, euler_timesteps

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SIGMAS = torch.tensor([14.6, 3.0, 0.8, 0.0], dtype=torch.float64)
TIMES = torch.tensor([999.0, 600.0, 300.0], dtype=torch.float64)


def make_noise(**settings):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**{**BETAS, "timestep_spacing": "trailing", **settings})
    return Noise(scheduler.config, scheduler.alphas_cumprod)


def test_a_step_keeps_the_noise_level_at_every_strength():
    """Of x₀ + σ ε with the right prediction, the next latents have the next σ."""
    image, fresh = 0.7, -1.3
    now, then = SIGMAS[:-1], SIGMAS[1:]
    latents = (image + now * fresh) / (now**2 + 1).sqrt()
    for eta in (0.0, 0.4, 1.0):
        schedule = euler_schedule(SIGMAS, TIMES, "epsilon", torch.full((3,), eta, dtype=torch.float64))
        mean = (schedule.latents_coef * latents + schedule.output_coef * fresh) * (then**2 + 1).sqrt()
        kept = (mean - image) / fresh
        added = schedule.std * (then**2 + 1).sqrt()
        assert torch.allclose(kept**2 + added**2, then**2)
        assert schedule.std[-1] == 0
        assert (schedule.std[:-1] > 0).all() == (eta > 0)


@pytest.mark.parametrize(("steps", "expected"), [(1, [999]), (2, [999, 499]), (4, [999, 749, 499, 249])])
def test_turbo_models_are_drawn_at_their_timesteps(steps, expected):
    assert euler_timesteps(steps, train_steps=1000, spacing="trailing", offset=1).tolist() == expected


def test_the_first_latents_are_scaled_as_in_diffusers():
    noise = make_noise()
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(noise.scheduler)
    scheduler.set_timesteps(4)
    fed = scheduler.scale_model_input(torch.ones(1) * scheduler.init_noise_sigma, scheduler.timesteps[0])
    assert SAMPLER.schedule(EulerSettings(), noise, 4, 0.0).initial_scale == pytest.approx(float(fed), rel=1e-6)
    assert SAMPLER.schedule(EulerSettings(), make_noise(timestep_spacing="leading"), 4, 0.0).initial_scale == 1


def test_a_window_leaves_the_other_calls_to_euler():
    noise = make_noise()
    plain = SAMPLER.schedule(EulerSettings(eta=0.0), noise, 4, 0.0)
    schedule = SAMPLER.schedule(EulerSettings(window=(1,)), noise, 4, 0.0)
    assert schedule.action_calls.tolist() == [1]
    for call in (0, 2, 3):
        assert schedule.output_coef[call] == plain.output_coef[call]


def test_diffusers_has_a_scheduler_for_no_and_for_full_noise():
    noise = make_noise()
    assert SAMPLER.in_diffusers(EulerSettings(), noise, 4) == PipelineCall(
        "EulerAncestralDiscreteScheduler", {"num_inference_steps": 4}
    )
    assert SAMPLER.in_diffusers(EulerSettings(eta=0.0), noise, 4).scheduler == "EulerDiscreteScheduler"
    assert SAMPLER.in_diffusers(EulerSettings(eta=0.5), noise, 4) is None


def test_steps_that_there_are_not_are_refused():
    with pytest.raises(ConfigError, match=r"sample.steps is 1001, more than the 1000 timesteps"):
        SAMPLER.schedule(EulerSettings(), make_noise(), 1001, 0.0)
    with pytest.raises(ConfigError, match="the first timestep is 1000, beyond the 1000"):
        SAMPLER.schedule(EulerSettings(), make_noise(timestep_spacing="leading", steps_offset=1), 1000, 0.0)
