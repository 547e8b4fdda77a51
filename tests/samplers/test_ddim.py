"""DDIM's schedule against the reference's tables and against diffusers' DDIMScheduler."""

import dataclasses
import math

import pytest
import torch
from diffusers import DDIMScheduler
from parity_tables import ParityTable, assert_rows_close, parity_cases

from rlcm_cli.core.gaussian import take_action
from rlcm_cli.core.schedule import Schedule, sample_trajectories, transition
from rlcm_cli.samplers import Noise, explain_no_actions
from rlcm_cli.samplers.ddim import SAMPLER, DdimSettings, ddim_schedule, ddim_timesteps

SPACINGS = ["leading", "trailing", "linspace"]
CASES = parity_cases("ddim_transition")


def diffusers_scheduler(prediction_type="epsilon", *, spacing="leading", alpha_to_one=False) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        # The offset is Stable Diffusion's; the other spacings ignore it.
        steps_offset=1,
        set_alpha_to_one=alpha_to_one,
        clip_sample=False,
    )


def make_schedule(
    steps, eta, prediction_type="epsilon", *, spacing="leading", alpha_to_one=False, alphas_cumprod=None
) -> Schedule:
    if alphas_cumprod is None:
        alphas_cumprod = diffusers_scheduler().alphas_cumprod
    return ddim_schedule(
        alphas_cumprod,
        ddim_timesteps(steps, train_steps=1000, spacing=spacing, offset=1),
        prediction_type,
        eta=torch.full((steps,), eta, dtype=torch.float64),
        final_alpha_cumprod=1.0 if alpha_to_one else float(alphas_cumprod[0]),
    )


def without_float32_scalars(log_prob: torch.Tensor, std: torch.Tensor, table: ParityTable) -> torch.Tensor:
    """The table's log-probability but for the rounding of its scalars.

    The reference code takes 2σ², log σ and log √2π in float32, also where its latents are float64: 1e-8 off.
    """
    rounded = std.float()
    assert torch.equal(rounded.double(), std), "σ itself is the reference's, in float32"
    square = log_prob + table.log(rounded) + table.log(table.sqrt(torch.tensor(2 * math.pi)).float())
    exact = square * (rounded**2).double() / std**2 - std.log() - 0.5 * math.log(2 * math.pi)
    assert_rows_close(exact[:, None], log_prob[:, None], 1e-6)
    return exact


def test_the_parity_tables_are_whole():
    groups = {"eta1.0.10", "eta1.0.50", "eta0.5.10", "eta0.5.50"}
    assert {group: len(cases) for group, cases in CASES.items()} == dict.fromkeys(groups, 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("group", CASES)
def test_log_probs_equal_the_reference_code(group, dtype, tolerance, monkeypatch):
    eta, steps = CASES[group][0]["eta"], int(group.rpartition(".")[2])
    table = ParityTable("ddim_transition")
    monkeypatch.setattr("rlcm_cli.core.schedule.rounded_sqrt", table.sqrt)
    exact = make_schedule(steps, eta, alphas_cumprod=table.alphas_cumprod)
    if dtype == torch.float32:
        monkeypatch.undo()
    schedule = make_schedule(steps, eta, alphas_cumprod=table.alphas_cumprod)
    indices = [schedule.timesteps.tolist().index(case["timestep"]) for case in CASES[group]]
    assert schedule.transition_pairs()[indices].tolist() == [
        [case["timestep"], case["next_timestep"]] for case in CASES[group]
    ]
    # All of a table in one batch, its steps mixed.
    order = torch.randperm(2 * len(indices), generator=torch.Generator().manual_seed(0))
    model_output, sample, next_sample, log_prob = (
        table.gather(CASES[group], name)[order] for name in ("model_output", "sample", "next_sample", "log_prob")
    )
    step = torch.tensor(indices).repeat_interleave(2)[order]
    gaussian = transition(schedule, model_output.to(dtype), sample.to(dtype), step)
    _, scored = take_action(gaussian.mean, gaussian.std, action=next_sample.to(dtype), reduction="mean")
    assert gaussian.mean.dtype == scored.dtype == dtype
    expected = without_float32_scalars(log_prob, exact.std[step], table)
    assert_rows_close(scored[:, None], expected[:, None], tolerance)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_equal_those_of_diffusers(spacing):
    scheduler = diffusers_scheduler(spacing=spacing)
    for steps in [*range(1, 101), 250, 333, 999]:
        scheduler.set_timesteps(steps)
        timesteps = ddim_timesteps(steps, train_steps=1000, spacing=spacing, offset=1)
        assert timesteps.dtype == torch.int64
        # At some H numpy's arange gives `trailing` of diffusers one timestep too many, which is -1.
        assert scheduler.timesteps.tolist()[steps:] in ([], [-1])
        assert timesteps.tolist() == scheduler.timesteps.tolist()[:steps], steps


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alpha_to_one", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_transition_equals_a_step_of_diffusers(eta, spacing, alpha_to_one, prediction_type):
    scheduler = diffusers_scheduler(prediction_type, spacing=spacing, alpha_to_one=alpha_to_one)
    # In float64, where the roots of both are the same on every processor.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    settings = {"spacing": spacing, "alpha_to_one": alpha_to_one}
    for steps in (1, 2, 10, 20, 50):
        schedule = make_schedule(steps, eta, prediction_type, alphas_cumprod=scheduler.alphas_cumprod, **settings)
        rounded = make_schedule(steps, eta, prediction_type, **settings)
        output, latents = torch.randn(2, steps, 4, 8, 8, generator=torch.Generator().manual_seed(steps)).double()
        gaussian = transition(schedule, output, latents, torch.arange(steps))
        scheduler.set_timesteps(steps)
        for noise in (0.0, 1.0):
            given = torch.full((1,), noise, dtype=torch.float64)
            stepped = torch.stack(
                [
                    scheduler.step(output[i], t, latents[i], eta=eta, variance_noise=given).prev_sample
                    for i, t in enumerate(scheduler.timesteps)
                ]
            )
            assert_rows_close(gaussian.mean + noise * gaussian.std, stepped, 1e-12)
            in_float32 = transition(rounded, output, latents, torch.arange(steps))
            assert_rows_close(in_float32.mean + noise * in_float32.std, stepped, 1e-5)


def test_which_calls_are_actions():
    assert make_schedule(10, 0.0).actions == 0
    # With Stable Diffusion's final ᾱ the last call draws noise, with 1 it is deterministic.
    # Where it starts at timestep 0, as in linspace, it is so in any case.
    for spacing, actions in zip(SPACINGS, [10, 10, 9], strict=True):
        assert make_schedule(10, 1.0, spacing=spacing).actions == actions
        assert make_schedule(10, 1.0, spacing=spacing, alpha_to_one=True).actions == 9


def test_a_zero_terminal_signal_does_not_blow_up():
    """Rescaled betas (arXiv 2305.08891) have ᾱ = 2⁻²⁴ at the first of the trailing timesteps."""
    scheduler = DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    timesteps = ddim_timesteps(5, train_steps=1000, spacing="trailing", offset=0)
    schedule = ddim_schedule(
        scheduler.alphas_cumprod, timesteps, "v_prediction", eta=torch.ones(5), final_alpha_cumprod=1.0
    )
    for values in (schedule.latents_coef, schedule.output_coef, schedule.std):
        assert values.isfinite().all()
        assert values.abs().max() <= 2


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_zero_terminal_signal_can_be_drawn_with_any_number_of_steps(spacing, prediction_type):
    """At eta 1 the radicand of the direction is 0 where ᾱ is, and rounding must not make a NaN of it."""
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, beta_schedule="scaled_linear", clip_sample=False)
    assert scheduler.alphas_cumprod[-1] == 0
    for steps in range(1, 101):
        timesteps = ddim_timesteps(steps, train_steps=1000, spacing=spacing, offset=0)
        for eta in (0.3, 1.0):
            schedule = ddim_schedule(
                scheduler.alphas_cumprod,
                timesteps,
                prediction_type,
                eta=torch.full((steps,), eta),
                final_alpha_cumprod=1.0,
            )
            assert schedule.find_fault() is None, (steps, eta)
            assert schedule.actions in (steps - 1, steps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_any_number_of_steps_gives_finite_numbers(spacing, prediction_type):
    for steps in range(1, 101):
        for alpha_to_one in (False, True):
            schedule = make_schedule(steps, 1.0, prediction_type, spacing=spacing, alpha_to_one=alpha_to_one)
            assert schedule.find_fault() is None, steps


def test_faults_of_a_schedule_are_found():
    good = make_schedule(4, 1.0, alpha_to_one=True)
    assert good.find_fault() is None
    assert make_schedule(4, 0.0).find_fault() is None
    infinite = dataclasses.replace(good, output_coef=good.output_coef.clone().index_fill(0, torch.tensor(1), math.inf))
    assert "timestep 501 has a factor that is NaN or infinite" in infinite.find_fault()
    for scale in (0.0, math.inf, math.nan):
        fault = dataclasses.replace(good, initial_scale=scale).find_fault()
        assert fault == f"the initial noise is multiplied by {scale}"


def test_without_noise_a_trajectory_is_the_state_of_the_last_call():
    schedule = make_schedule(3, 0.0)
    noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    fed = []

    def predict(latents, _):
        fed.append(latents)
        return 0.1 * latents

    trajectories, final = sample_trajectories(predict, schedule, noise, "mean", torch.float32)
    assert trajectories.actions == 0
    assert torch.equal(trajectories.latents_BSCHW[:, 0], fed[2])
    assert final.shape == (2, 4, 8, 8)


def test_spacing_and_window_can_be_asked_for():
    scheduler = diffusers_scheduler()
    noise = Noise(scheduler.config, scheduler.alphas_cumprod)
    trailing = SAMPLER.schedule(DdimSettings(timestep_spacing="trailing"), noise, 4, 0.0)
    assert trailing.timesteps.tolist() == [999, 749, 499, 249]
    asked = SAMPLER.in_diffusers(DdimSettings(timestep_spacing="trailing", eta=0.0), noise, 4)
    assert asked.settings == {"timestep_spacing": "trailing"}
    window = SAMPLER.schedule(DdimSettings(window=(0, 2)), noise, 4, 0.0)
    assert window.action_calls.tolist() == [0, 2]
    assert SAMPLER.in_diffusers(DdimSettings(window=(0, 2)), noise, 4) is None
    assert "name the calls" in str(explain_no_actions(DdimSettings(window=()), 4))
