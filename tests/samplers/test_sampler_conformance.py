"""What every sampler must do. Being in the folder is what puts one under these tests."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from typing import Any, Literal, get_args, get_origin

import diffusers
import pytest
import torch
from parity_tables import assert_rows_close
from pydantic import ValidationError

from rlcm_cli.config import parse_config
from rlcm_cli.core.gaussian import take_action
from rlcm_cli.core.schedule import sample_trajectories, transition
from rlcm_cli.core.trajectory import flatten_transitions
from rlcm_cli.samplers import (
    SAMPLERS,
    Noise,
    Sampler,
    SamplerSettings,
    explain_no_actions,
    read_setting,
    write_setting,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
STEPS = (1, 2, 3, 4, 8, 20, 50)


def values_of(setting: Any) -> list[Any]:
    """Some values of a setting: every word, the bounds of a number and what lies between them, and the default."""
    if get_origin(setting.annotation) is Literal:
        return list(get_args(setting.annotation))
    bounds = {name: getattr(one, name) for one in setting.metadata for name in ("ge", "le") if hasattr(one, name)}
    if len(bounds) == 2:
        return [bounds["ge"], (bounds["ge"] + bounds["le"]) / 2, bounds["le"]]
    return [setting.default]


def all_settings(sampler: Sampler) -> list[SamplerSettings]:
    """All combinations of some values, but for those that the settings refuse."""
    fields = {name: sampler.settings.model_fields[name] for name in sampler.setting_names}
    found = []
    for values in itertools.product(*(values_of(field) for field in fields.values())):
        with contextlib.suppress(ValidationError):
            found.append(sampler.settings(**dict(zip(fields, values, strict=True))))
    return found


CASES = [
    pytest.param(sampler, settings, id=f"{kind}-{'-'.join(map(str, settings.model_dump(exclude={'kind'}).values()))}")
    for kind, sampler in SAMPLERS.items()
    for settings in all_settings(sampler)
]


def make_scheduler(name: str, prediction_type: str = "epsilon", **changes: Any) -> Any:
    """A scheduler of diffusers, with ᾱ in float64, where the roots of both are the same on every processor."""
    kind = getattr(diffusers, name)
    kinds = {"prediction_type": "trigflow" if name == "SCMScheduler" else prediction_type}  # which knows no other
    settings = {**BETAS, **kinds, "clip_sample": False, **changes}
    known = inspect.signature(kind).parameters
    scheduler = kind(**{name: value for name, value in settings.items() if name in known})
    for name in ("alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def noise_of(sampler: Sampler, prediction_type: str = "epsilon") -> Noise:
    """The noise of a model that the sampler's own scheduler is read of: with ᾱ, or of flow matching, shifted."""
    scheduler = make_scheduler(sampler.scheduler, prediction_type)
    if hasattr(scheduler, "alphas_cumprod"):
        return Noise(scheduler.config, scheduler.alphas_cumprod)
    return Noise(scheduler.config, sigmas=read_sigmas(scheduler))


def read_sigmas(scheduler: Any) -> Any:
    def sigmas(steps: int, asked: Any) -> torch.Tensor:
        scheduler.set_timesteps(**({"num_inference_steps": steps} if asked is None else {"sigmas": list(asked)}))
        return scheduler.sigmas.double()

    return sigmas


def draw_noise(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predict(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Stand in for a model: smooth in both, and not small."""
    return (latents * 0.7).sin() + (timesteps / 1000).double().view(-1, 1, 1, 1)


def draw_with_diffusers(scheduler: Any, arguments: dict[str, Any]) -> tuple[torch.Tensor, list[float]]:
    """Draw as a pipeline does that is called with the arguments; the noise of call i is `draw_noise(i + 1)`.

    Returns the latents, and the times that the model is told.
    """
    if type(scheduler).__name__ == "SCMScheduler":
        return draw_like_sana_sprint(scheduler, arguments)
    own = {name: arguments[name] for name in ("num_inference_steps", "timesteps", "sigmas") if name in arguments}
    scheduler.set_timesteps(**own)
    extra = {name: value for name, value in arguments.items() if name not in own}
    latents = draw_noise(0) * getattr(scheduler, "init_noise_sigma", 1.0)
    for index, timestep in enumerate(scheduler.timesteps):
        fed = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        output = predict(fed, timestep.expand(len(latents)))
        generator = torch.Generator().manual_seed(index + 1)
        latents = scheduler.step(output, timestep, latents, generator=generator, **extra).prev_sample
    return latents, scheduler.timesteps.tolist()


def draw_like_sana_sprint(scheduler: Any, arguments: dict[str, Any]) -> tuple[torch.Tensor, list[float]]:
    """The same as `SanaSprintPipeline`, whose latents are not what the model is fed, nor its output what it gives."""
    scheduler.set_timesteps(**arguments)
    scale = scheduler.config["sigma_data"]
    latents = denoised = draw_noise(0) * scale
    times = []
    for index, angle in enumerate(scheduler.timesteps[:-1]):
        time = angle.sin() / (angle.cos() + angle.sin())
        length = (time**2 + (1 - time) ** 2).sqrt()
        fed = latents / scale * length
        output = ((1 - 2 * time) * fed + length**2 * predict(fed, time.expand(len(latents)))) / length * scale
        torch.set_default_dtype(torch.float64)  # of the noise that the scheduler draws
        generator = torch.Generator().manual_seed(index + 1)
        latents, denoised = scheduler.step(output, angle, latents, generator=generator, return_dict=False)
        torch.set_default_dtype(torch.float32)
        times.append(time.item())
    return denoised / scale, times


# The formulas of the others, which diffusers has no scheduler for, are compared in the samplers' own tests.
IN_DIFFUSERS = [
    pytest.param(*case.values, prediction_type, id=f"{case.id}-{prediction_type}")
    for case in CASES
    for prediction_type in PREDICTION_TYPES
    if case.values[0].in_diffusers(case.values[1], noise_of(case.values[0], prediction_type), 4)
]


def test_every_sampler_is_compared():
    assert {case.values[0].kind for case in IN_DIFFUSERS} == {*SAMPLERS}


@pytest.mark.parametrize(("sampler", "settings", "prediction_type"), IN_DIFFUSERS)
def test_it_draws_what_its_scheduler_in_diffusers_draws(sampler, settings, prediction_type):
    for steps in STEPS:
        model_noise = noise_of(sampler, prediction_type)
        call = sampler.in_diffusers(settings, model_noise, steps)
        assert call is not None
        scheduler = make_scheduler(call.scheduler, prediction_type, **call.settings)
        schedule = sampler.schedule(settings, model_noise, steps, 0.0)
        noise = torch.stack([draw_noise(seed) for seed in range(steps + 1)], 1)
        _, drawn = sample_trajectories(predict, schedule, noise, "mean", torch.float64)
        expected, times = draw_with_diffusers(scheduler, call.arguments)
        assert schedule.timesteps.tolist() == pytest.approx(times, rel=1e-6, abs=1e-4), steps
        # diffusers takes some numbers in float32, of an LCM's boundary condition say.
        assert_rows_close(drawn, expected, 2e-6)


@pytest.mark.parametrize(("sampler", "settings"), CASES)
def test_its_schedule_is_sound(sampler, settings):
    noise = noise_of(sampler)
    for steps in STEPS:
        schedule = sampler.schedule(settings, noise, steps, 0.0)
        assert schedule.find_fault() is None
        assert schedule.steps == steps
        assert schedule.timesteps.tolist() == sorted(schedule.timesteps.tolist(), reverse=True)
        assert {len(values) for values in vars(schedule).values() if torch.is_tensor(values)} == {steps}
        assert {values.dtype for values in (schedule.latents_coef, schedule.output_coef, schedule.std)} == {
            torch.float64
        }
        assert schedule.std.min() >= 0


@pytest.mark.parametrize(("sampler", "settings"), CASES)
def test_actions_score_alike_when_they_are_replayed(sampler, settings):
    schedule = sampler.schedule(settings, noise_of(sampler), 4, 0.0)
    noise = torch.stack([draw_noise(seed) for seed in range(5)], 1).float()

    def in_float32(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return predict(latents, timesteps).float()

    trajectories, _ = sample_trajectories(in_float32, schedule, noise, "mean", torch.float32)
    actions = torch.arange(trajectories.actions)
    flat = flatten_transitions(trajectories, torch.arange(2), actions.expand(2, -1))
    output = in_float32(flat.states_NCHW, schedule.timesteps[flat.calls_N])
    gaussian = transition(schedule, output, flat.states_NCHW, flat.calls_N)
    if trajectories.actions:
        _, scored = take_action(gaussian.mean, gaussian.std, action=flat.actions_NCHW, reduction="mean")
        assert torch.equal(scored, flat.log_probs_N)


@pytest.mark.parametrize(("sampler", "settings"), CASES)
def test_it_says_why_nothing_can_be_trained(sampler, settings):
    noise = noise_of(sampler)
    for steps in STEPS:
        actions = sampler.schedule(settings, noise, steps, 0.0).actions
        said = explain_no_actions(settings, steps)
        assert not (said and actions), (steps, said)
        # What one call draws may depend on the model's scheduler, which the settings do not know.
        assert said or actions or steps == 1, steps
        assert said is None or ("; " in said and "\n" not in said)


@pytest.mark.parametrize("sampler", [one for one in SAMPLERS.values() if one.noise_on_last_call])
def test_noise_on_the_last_call_is_an_action_where_it_is_allowed(sampler):
    noise, settings = noise_of(sampler), sampler.default_settings()
    plain, noisy = (sampler.schedule(settings, noise, 4, std) for std in (0.0, 0.1))
    assert noisy.actions == plain.actions + 1
    assert noisy.std[-1] == 0.1


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_its_settings_can_be_left_out_written_down_and_read_back(sampler):
    kind = sampler.kind
    assert get_args(sampler.settings.model_fields["kind"].annotation) == (kind,)
    values = {"task": "mine", "rewards": {"compressibility": 1.0}, "sampler": {"kind": kind}}
    assert parse_config(values).sampler == sampler.default_settings()
    for settings in (*all_settings(sampler), sampler.drawing_settings()):
        config = parse_config({**values, "sampler": settings.model_dump(mode="json")})
        assert config.sampler == settings
        assert parse_config(config.model_dump(mode="json")) == config
        as_text = {name: write_setting(getattr(settings, name)) for name in sampler.setting_names}
        assert sampler.settings(**{name: read_setting(text) for name, text in as_text.items() if text}) == settings


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_setting_says_what_it_is(sampler):
    assert sampler.settings.__doc__
    assert [name for name in sampler.setting_names if not sampler.settings.model_fields[name].description] == []
