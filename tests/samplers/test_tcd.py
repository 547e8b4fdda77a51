"""TCD's schedule against diffusers' TCDScheduler."""

import pytest
import torch
from diffusers import TCDScheduler

from rlcm_cli.core.schedule import Schedule, transition
from rlcm_cli.samplers._distilled import distilled_timesteps
from rlcm_cli.samplers.tcd import tcd_schedule

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


def diffusers_scheduler(prediction_type="epsilon") -> TCDScheduler:
    return TCDScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


def make_schedule(steps, gamma, prediction_type="epsilon", *, alphas_cumprod=None) -> Schedule:
    timesteps = distilled_timesteps(steps, original_steps=50, train_steps=1000, spacing="diffusers")
    if alphas_cumprod is None:
        alphas_cumprod = diffusers_scheduler().alphas_cumprod
    return tcd_schedule(alphas_cumprod, timesteps, prediction_type, gamma=gamma)


def test_timesteps_equal_those_of_diffusers():
    scheduler = diffusers_scheduler()
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        assert make_schedule(steps, 0.3).timesteps.tolist() == scheduler.timesteps.tolist(), steps


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_every_transition_equals_a_step_of_diffusers(gamma, prediction_type, monkeypatch):
    scheduler = diffusers_scheduler(prediction_type)
    # In float64, where the roots of both are the same on every processor.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    for steps in (1, 2, 4, 8, 50):
        schedule = make_schedule(steps, gamma, prediction_type, alphas_cumprod=scheduler.alphas_cumprod)
        output, latents = torch.randn(2, steps, 4, 8, 8, generator=torch.Generator().manual_seed(steps)).double()
        gaussian = transition(schedule, output, latents, torch.arange(steps))
        for noise in (0.0, 1.0):
            given = torch.full((1,), noise, dtype=torch.float64)
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_tcd.randn_tensor", lambda *_, given=given, **__: given
            )
            scheduler.set_timesteps(steps)
            stepped = torch.stack(
                [
                    scheduler.step(output[i], t, latents[i], eta=gamma).prev_sample
                    for i, t in enumerate(scheduler.timesteps)
                ]
            )
            error = (gaussian.mean + noise * gaussian.std - stepped).abs().flatten(1).amax(1)
            assert (error <= 1e-12 * stepped.abs().flatten(1).amax(1)).all(), (steps, noise, error)
            # With the float32 ᾱ that a pipeline has, whose roots are rounded.
            rounded = transition(make_schedule(steps, gamma, prediction_type), output, latents, torch.arange(steps))
            error = (rounded.mean + noise * rounded.std - stepped).abs().flatten(1).amax(1)
            assert (error <= 1e-5 * stepped.abs().flatten(1).amax(1)).all(), (steps, noise, error)


def test_the_last_call_is_deterministic_and_all_calls_are_without_gamma():
    schedule = make_schedule(4, 0.3)
    assert (schedule.steps, schedule.actions) == (4, 3)
    assert (schedule.std > 0).tolist() == [True, True, True, False]
    assert schedule.transition_pairs().tolist() == [[999, 759], [759, 499], [499, 259]]
    assert make_schedule(4, 0.0).actions == 0
    assert make_schedule(1, 0.3).actions == 0
