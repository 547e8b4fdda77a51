"""The flow matching sampler: its formulas against those that they stand for, its settings and its windows."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from pydantic import ValidationError

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, explain_no_actions, read_setting, settle_window, write_setting
from rlcm_cli.samplers._window import WindowSettings, find_no_noise
from rlcm_cli.samplers.flow import SAMPLER, FlowSettings, choose_sigmas, flow_schedule

SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0], dtype=torch.float64)


def make_noise(**settings):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**settings)

    def sigmas(steps, asked):
        scheduler.set_timesteps(**({"num_inference_steps": steps} if asked is None else {"sigmas": list(asked)}))
        return scheduler.sigmas.double()

    return Noise(scheduler.config, sigmas=sigmas)


def each(eta):
    return torch.full((4,), eta, dtype=torch.float64)


def step(schedule, call, x, v):
    return schedule.latents_coef[call] * x + schedule.output_coef[call] * v


@pytest.mark.parametrize("noise", ["cps", "flow-sde", "dance-sde"])
def test_without_noise_each_kind_is_euler(noise):
    schedule = flow_schedule(SIGMAS, each(0.0), noise)
    assert schedule.latents_coef.tolist() == [1.0] * 4
    assert torch.equal(schedule.output_coef, SIGMAS.diff())
    assert schedule.std.tolist() == [0.0] * 4
    assert schedule.timesteps.tolist() == [1000.0, 900.0, 750.0, 500.0]


def test_cps_keeps_the_noise_level_at_every_strength():
    """Of latents (1 − σ) x₀ + σ ε with the true velocity, the next ones have the next σ (arXiv 2509.05952)."""
    image, fresh = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    for eta in (0.0, 0.3, 0.9, 1.0):
        schedule = flow_schedule(SIGMAS, each(eta), "cps")
        for call in range(4):
            now, then = SIGMAS[call], SIGMAS[call + 1]
            mean = step(schedule, call, (1 - now) * image + now * fresh, fresh - image)
            kept = then * math.cos(eta * math.pi / 2)
            assert mean == pytest.approx(float((1 - then) * image + kept * fresh), abs=1e-12)
            assert schedule.std[call] ** 2 + kept**2 == pytest.approx(float(then) ** 2, abs=1e-12)


def test_cps_at_full_strength_is_the_stochastic_step_of_diffusers():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    scheduler.set_timesteps(4)
    schedule = flow_schedule(scheduler.sigmas.double(), each(1.0), "cps")
    x, v = (torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for call, timestep in enumerate(scheduler.timesteps):
        fresh = torch.randn(2, 3, generator=torch.Generator().manual_seed(call))
        expected = scheduler.step(v, timestep, x, generator=torch.Generator().manual_seed(call)).prev_sample
        drawn = step(schedule, call, x, v) + schedule.std[call] * fresh
        assert torch.allclose(drawn.float(), expected, atol=1e-6)
        x = expected


@pytest.mark.parametrize(("noise", "eta"), [("flow-sde", 0.7), ("dance-sde", 0.3)])
def test_the_stochastic_equations_are_those_of_their_papers(noise, eta):
    schedule = flow_schedule(SIGMAS, each(eta), noise)
    x, v = torch.tensor(0.4, dtype=torch.float64), torch.tensor(-0.9, dtype=torch.float64)
    for call in range(3):
        now, then = SIGMAS[call], SIGMAS[call + 1]
        g = eta * math.sqrt(now / (1 - (now if now < 1 else then))) if noise == "flow-sde" else eta
        # The drift of the equation whose marginals are the flow's: v + g² / 2 · (x + (1 − σ) v) / σ.
        drift = v + g**2 / (2 * now) * (x + (1 - now) * v)
        assert step(schedule, call, x, v) == pytest.approx(float(x + drift * (then - now)), abs=1e-12)
        assert schedule.std[call] == pytest.approx(g * math.sqrt(now - then))
    # What is decoded is not noised: a large last step would otherwise end in grain.
    assert schedule.std[3] == 0
    assert schedule.output_coef[3] == -0.5


def test_a_window_leaves_the_other_calls_deterministic():
    noise, plain = make_noise(shift=3.0), flow_schedule(make_noise(shift=3.0).sigmas(4, None), each(0.0), "cps")
    schedule = SAMPLER.schedule(FlowSettings(eta=0.9, window=(1, 2)), noise, 4, 0.0)
    assert schedule.action_calls.tolist() == [1, 2]
    for call in (0, 3):
        assert schedule.latents_coef[call] == plain.latents_coef[call]
        assert schedule.output_coef[call] == plain.output_coef[call]
    with pytest.raises(ConfigError, match=r"sampler.window names the model call 4, and with sample.steps 4 they are"):
        SAMPLER.schedule(FlowSettings(window=(1, 4)), noise, 4, 0.0)
    assert "name calls from 0 to 2" in str(explain_no_actions(FlowSettings(window=(3,)), 4))
    assert find_no_noise(WindowSettings(kind="any", window=(0, 3)), 4) is None
    assert find_no_noise(WindowSettings(kind="any"), 1) == ("sample.steps is 1", "use --steps 2 or more")


def settle(settings, calls, seed=0, iteration=0):
    return settle_window(settings, calls, seed, iteration)


def test_random_calls_are_settled_by_a_seed():
    settings = FlowSettings(random_calls=2)
    assert {settle(settings, [0, 1, 2], seed).window for seed in range(40)} == {(0, 1), (0, 2), (1, 2)}
    assert settle(settings, [0, 1, 2], 7) == settle(settings, [0, 1, 2], 7)
    assert settle(FlowSettings(), [0, 1, 2]) == FlowSettings()
    assert settle(FlowSettings(eta=0, random_calls=2), []).random_calls == 2  # there is nothing to choose from
    with pytest.raises(ConfigError, match="random_calls is 2, and only 1 model calls can draw noise"):
        settle(settings, [0])


def test_a_window_moves_with_the_iterations_or_at_random():
    moving = FlowSettings(window_size=2, window_every=3)
    windows = [settle(moving, [0, 1, 2, 3], seed=iteration, iteration=iteration).window for iteration in range(12)]
    assert windows == [window for window in [(0, 1), (1, 2), (2, 3), (0, 1)] for _ in range(3)]
    by_chance = FlowSettings(window_size=2)
    assert {settle(by_chance, [0, 1, 2, 3], seed).window for seed in range(40)} == {(0, 1), (1, 2), (2, 3)}
    assert settle(by_chance, [0, 1, 2, 3], 3, iteration=1) == settle(by_chance, [0, 1, 2, 3], 3, iteration=9)
    with pytest.raises(ConfigError, match="window_size is 2, and only 1 model calls can draw noise"):
        settle(moving, [0])


def test_a_window_can_be_one_of_chosen_calls():
    noise = make_noise(shift=3.0)
    for settings in (FlowSettings(window=(0, 1), random_calls=1), FlowSettings(window=(0, 1), window_size=1)):
        calls = SAMPLER.schedule(settings, noise, 4, 0.0).action_calls.tolist()
        assert calls == [0, 1]
        assert {settle(settings, calls, seed).window for seed in range(20)} == {(0,), (1,)}


def test_levels_can_be_given():
    noise, asked = make_noise(shift=3.0), (1.0, 0.75, 0.5, 0.25)
    found = choose_sigmas(FlowSettings(sigmas=asked), noise, 4)
    assert found.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    for wrong, steps in ((asked, 3), ((0.5, 0.75), 2)):
        with pytest.raises(ConfigError, match="one for each model call, each below the one before"):
            choose_sigmas(FlowSettings(sigmas=wrong), noise, steps)
    with pytest.raises(ConfigError, match="no σ of flow matching"):
        choose_sigmas(FlowSettings(), Noise({}), 4)


def test_the_shift_can_be_given():
    asked = []

    def sigmas(steps, levels, shift=None):
        asked.append((steps, levels, shift))
        return SIGMAS

    noise = Noise({"num_train_timesteps": 1000}, sigmas=sigmas)
    for settings in (FlowSettings(), FlowSettings(shift=3.0)):
        assert choose_sigmas(settings, noise, 4) is SIGMAS
    assert asked == [(4, None, None), (4, None, 3.0)]
    call = SAMPLER.in_diffusers(FlowSettings(shift=3.0, eta=0.0), noise, 4)
    shifted = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02).config,
        **call.settings,
    )
    shifted.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=7.0)
    assert shifted.sigmas.tolist() == pytest.approx(SIGMAS.tolist())
    with pytest.raises(ValidationError, match="shift"):
        FlowSettings(shift=0)


def test_settings_that_cannot_be_are_refused():
    for wrong in (
        {"eta": 1.5},
        {"window": (2, 1)},
        {"window": (-1,)},
        {"random_calls": 1, "window_size": 1},
        {"window_every": 25},
    ):
        with pytest.raises(ValidationError):
            FlowSettings(**wrong)
    assert FlowSettings(noise="flow-sde", eta=1.5).eta == 1.5
    assert FlowSettings(window=2).window == (2,)
    assert FlowSettings(window=[1, 2]).window == (1, 2)


def test_several_numbers_are_written_and_read_back():
    for value in ((1, 2), (1,), (1.0, 0.5), 0.3, "cps"):
        assert read_setting(write_setting(value)) == value
    assert write_setting(None) == ""
    assert read_setting("1, 2") == (1, 2)
