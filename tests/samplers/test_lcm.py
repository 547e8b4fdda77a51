import math

import pytest
import torch
from diffusers import LCMScheduler
from parity_tables import ParityTable, assert_rows_close, parity_cases

from rlcm_cli.core.gaussian import take_action
from rlcm_cli.core.schedule import Schedule, roots, rounded_sqrt, sample_trajectories, transition
from rlcm_cli.core.trajectory import flatten_transitions
from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise
from rlcm_cli.samplers._distilled import distilled_timesteps
from rlcm_cli.samplers.lcm import SAMPLER, LcmSettings, lcm_schedule

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
CASES = parity_cases("lcm_transition")


def diffusers_scheduler(prediction_type: str = "epsilon") -> LCMScheduler:
    return LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


def make_schedule(
    steps: int, spacing: str, prediction_type: str = "epsilon", *, alphas_cumprod=None, **settings
) -> Schedule:
    timesteps = distilled_timesteps(steps, original_steps=50, train_steps=1000, spacing=spacing)
    if alphas_cumprod is None:
        alphas_cumprod = diffusers_scheduler().alphas_cumprod
    return lcm_schedule(alphas_cumprod, timesteps, prediction_type, **settings)


def without_float32_scalars(log_prob: torch.Tensor, alpha_bar: torch.Tensor, table: ParityTable) -> torch.Tensor:
    """The table's log-probability but for the rounding of its scalars.

    The reference code takes 2σ², log σ and log √2π in float32, also where its latents are float64: 1e-8 off.
    """
    variance = 1 - alpha_bar
    std = table.sqrt(variance)
    root = table.sqrt(torch.tensor(2 * math.pi))
    square = log_prob + table.log(std.float()) + table.log(root.float())
    exact = square * variance.double() / std**2 - std.log() - 0.5 * math.log(2 * math.pi)
    assert_rows_close(exact[:, None], log_prob[:, None], 1e-7)
    return exact


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("group", CASES)
def test_transitions_and_log_probs_equal_the_reference_code(group, dtype, tolerance, monkeypatch):
    prediction_type, steps = group.split(".")
    table = ParityTable("lcm_transition")
    if dtype == torch.float64:
        monkeypatch.setattr("rlcm_cli.core.schedule.rounded_sqrt", table.sqrt)
    schedule = make_schedule(int(steps), "strided", prediction_type, alphas_cumprod=table.alphas_cumprod)
    pairs = [[case["timestep"], case["next_timestep"]] for case in CASES[group]]
    assert schedule.transition_pairs().tolist() == pairs

    # All of a table in one batch, its steps mixed.
    order = torch.randperm(2 * len(pairs), generator=torch.Generator().manual_seed(0))
    model_output, sample, next_sample, denoised, log_prob = (
        table.gather(CASES[group], name)[order]
        for name in ("model_output", "sample", "next_sample", "denoised", "log_prob")
    )
    step = torch.arange(len(pairs)).repeat_interleave(2)[order]
    gaussian = transition(schedule, model_output.to(dtype), sample.to(dtype), step)
    _, scored = take_action(gaussian.mean, gaussian.std, action=next_sample.to(dtype), reduction="mean")
    assert gaussian.mean.dtype == scored.dtype == dtype
    next_alpha_bar = table.alphas_cumprod[schedule.next_timesteps[step]]
    expected = without_float32_scalars(log_prob, next_alpha_bar, table)
    assert_rows_close(gaussian.mean / table.sqrt(next_alpha_bar).view(-1, 1, 1, 1), denoised, tolerance)
    assert_rows_close(scored[:, None], expected[:, None], tolerance)


def test_the_parity_tables_are_whole():
    assert {group: len(cases) for group, cases in CASES.items()} == {
        "epsilon.2": 1,
        "epsilon.4": 3,
        "epsilon.8": 7,
        "v_prediction.4": 3,
        "sample.4": 3,
    }


@pytest.mark.parametrize("original_steps", [25, 50, 100, 1000])
def test_timesteps_equal_those_of_diffusers(original_steps):
    scheduler = diffusers_scheduler()
    for steps in [*range(1, min(original_steps, 50) + 1), original_steps]:
        scheduler.set_timesteps(steps, original_inference_steps=original_steps)
        timesteps = distilled_timesteps(steps, original_steps=original_steps, train_steps=1000, spacing="diffusers")
        assert timesteps.dtype == torch.int64
        assert timesteps.tolist() == scheduler.timesteps.tolist(), steps


@pytest.mark.parametrize(
    ("steps", "timesteps"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 519, 279]),
        (8, [999, 879, 759, 639, 519, 399, 279, 159]),
        (16, [*range(999, 39, -60)]),
        (50, [*range(999, 0, -20)]),
    ],
)
def test_strided_timesteps_are_those_of_the_published_code(steps, timesteps):
    assert distilled_timesteps(steps, original_steps=50, train_steps=1000, spacing="strided").tolist() == timesteps


def test_a_schedule_by_hand():
    alphas = diffusers_scheduler().alphas_cumprod[[999, 759, 499, 259]]
    schedule = make_schedule(4, "diffusers")
    assert (schedule.steps, schedule.actions) == (4, 3)
    assert schedule.timesteps.tolist() == [999, 759, 499, 259]
    assert schedule.next_timesteps.tolist() == [759, 499, 259, -1]
    assert schedule.transition_pairs().tolist() == [[999, 759], [759, 499], [499, 259]]
    assert torch.equal(schedule.std, torch.cat([rounded_sqrt(1 - alphas[1:]), torch.zeros(1)]))
    assert {values.dtype for values in (schedule.latents_coef, schedule.output_coef, schedule.std)} == {torch.float64}


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", ["diffusers", "strided"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 50])
def test_every_transition_equals_a_step_of_diffusers(steps, spacing, prediction_type, monkeypatch):
    alphas_cumprod = diffusers_scheduler().alphas_cumprod.double()  # whose roots are the same on every processor
    schedule = make_schedule(steps, spacing, prediction_type, alphas_cumprod=alphas_cumprod)
    generator = torch.Generator().manual_seed(steps)
    output, latents = torch.randn(2, steps, 4, 8, 8, generator=generator, dtype=torch.float64)
    gaussian = transition(schedule, output, latents, torch.arange(steps))
    for noise, expected in [(torch.zeros(1), gaussian.mean), (torch.ones(1), gaussian.mean + gaussian.std)]:
        monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, noise=noise, **__: noise)
        scheduler = diffusers_scheduler(prediction_type)
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = alphas_cumprod, alphas_cumprod.new_ones(())
        scheduler.num_inference_steps, scheduler.timesteps = steps, schedule.timesteps
        stepped = [scheduler.step(output[i], t, latents[i]) for i, t in enumerate(schedule.timesteps)]
        # diffusers takes c_skip and c_out in float32, we take them in float64.
        assert_rows_close(expected, torch.stack([step.prev_sample for step in stepped]), 2e-7)
    assert torch.equal(gaussian.std.flatten() > 0, torch.arange(steps) < steps - 1)


def test_noise_at_the_last_call_makes_an_action_around_the_denoised_latents():
    schedule, noisy = make_schedule(4, "diffusers"), make_schedule(4, "diffusers", last_std=0.1)
    assert (noisy.steps, noisy.actions) == (4, 4)
    assert noisy.transition_pairs().tolist() == [[999, 759], [759, 499], [499, 259], [259, -1]]
    assert (noisy.std - schedule.std).tolist() == [0, 0, 0, 0.1]
    for name in ("timesteps", "next_timesteps", "latents_coef", "output_coef"):
        assert torch.equal(getattr(noisy, name), getattr(schedule, name)), name

    output, latents = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers_scheduler()
    scheduler.num_inference_steps, scheduler.timesteps = 4, schedule.timesteps
    denoised = [scheduler.step(output, t, latents).denoised for t in schedule.timesteps][-1]
    torch.testing.assert_close(
        transition(noisy, output, latents, torch.tensor([3])).mean, denoised, rtol=0, atol=2e-7 * 10
    )


def test_sampling_draws_the_last_action_around_the_denoised_latents():
    noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = {
        std: sample_trajectories(
            lambda latents, _: 0.5 * latents, make_schedule(2, "diffusers", last_std=std), given, "mean", torch.float32
        )
        for std, given in ((0.0, noise[:, :2]), (0.1, noise))
    }
    (plain, denoised), (noisy, final) = drawn[0.0], drawn[0.1]
    assert (plain.actions, noisy.actions) == (1, 2)
    assert torch.equal(noisy.latents_BSCHW[:, :2], plain.latents_BSCHW)
    assert torch.equal(noisy.log_probs_BA[:, :1], plain.log_probs_BA)
    assert torch.equal(final, noisy.latents_BSCHW[:, 2])
    torch.testing.assert_close(final, denoised + 0.1 * noise[:, 2], rtol=0, atol=1e-7 * final.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_batch_of_mixed_steps_equals_its_rows_one_by_one(prediction_type, dtype):
    schedule = make_schedule(5, "diffusers", prediction_type)
    step = torch.tensor([3, 0, 4, 0, 2, 1])
    output, latents = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    together = transition(schedule, output, latents, step)
    for row in range(6):
        alone = transition(schedule, output[row, None], latents[row, None], step[row, None])
        for name in ("mean", "std"):
            assert torch.equal(getattr(together, name)[row, None], getattr(alone, name))


def test_the_timestep_scaling_reaches_the_boundary_condition():
    alphas = torch.zeros(4, dtype=torch.float64)
    alphas[[3, 1]] = torch.tensor([0.9, 0.99], dtype=torch.float64)
    schedule = lcm_schedule(alphas, torch.tensor([3, 1]), "sample", timestep_scaling=0.5)
    latents = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    result = transition(schedule, torch.ones_like(latents), latents, torch.tensor([0]))
    # s = 1.5, σ = 0.5: c_skip = 0.25 / 2.5, c_out = 1.5 / √2.5.
    assert result.mean.item() == pytest.approx(0.99**0.5 * (0.1 * 2 + 1.5 / 2.5**0.5), rel=1e-12)
    assert result.std.item() == pytest.approx(0.01**0.5, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sampling_records_what_replaying_gives(dtype):
    schedule = make_schedule(4, "diffusers")
    fed = []

    def predict(latents, timesteps):
        fed.append((latents, timesteps))
        return (latents * (timesteps / 1000).view(-1, 1, 1, 1)).to(dtype)

    noise = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    trajectories, denoised = sample_trajectories(predict, schedule, noise, "mean", dtype)
    assert [timesteps.tolist() for _, timesteps in fed] == [[t] * 3 for t in (999, 759, 499, 259)]
    assert torch.equal(trajectories.latents_BSCHW, torch.stack([latents for latents, _ in fed], 1))
    assert torch.equal(trajectories.latents_BSCHW[:, 0], noise[:, 0].to(dtype))
    assert trajectories.timesteps_A2.tolist() == [[999, 759], [759, 499], [499, 259]]
    assert trajectories.log_probs_BA.shape == (3, 3)
    assert denoised.dtype == trajectories.latents_BSCHW.dtype == dtype

    last = torch.full((3,), 3)
    final = trajectories.latents_BSCHW[:, 3]
    assert torch.equal(
        denoised, transition(schedule, predict(final, torch.full((3,), 259)), final, last).mean.to(dtype)
    )

    flat = flatten_transitions(trajectories, torch.arange(3), torch.arange(3).expand(3, -1))
    output = predict(flat.states_NCHW, schedule.timesteps[flat.calls_N])
    gaussian = transition(schedule, output, flat.states_NCHW, flat.calls_N)
    _, log_probs = take_action(gaussian.mean.to(dtype), gaussian.std, action=flat.actions_NCHW, reduction="mean")
    assert log_probs.dtype == torch.float32
    assert torch.equal(log_probs, flat.log_probs_N)


def test_one_step_sampling_has_no_action():
    schedule = make_schedule(1, "diffusers")
    trajectories, denoised = sample_trajectories(
        lambda latents, _: latents, schedule, torch.ones(2, 1, 4, 8, 8), "mean", torch.float32
    )
    assert trajectories.actions == 0
    assert trajectories.latents_BSCHW.shape == (2, 1, 4, 8, 8)
    assert trajectories.timesteps_A2.shape == (0, 2)
    assert denoised.shape == (2, 4, 8, 8)


def test_less_noise_keeps_the_noise_level():
    """Of latents √ᾱ x₀ + √(1 − ᾱ) ε, the right prediction leads to the next level whatever η is."""
    levels = diffusers_scheduler().alphas_cumprod.double()
    timesteps = distilled_timesteps(4, original_steps=50, train_steps=1000, spacing="diffusers")
    alpha, sigma = roots(levels[timesteps])
    image, fresh = 0.7, -1.3
    latents = alpha * image + sigma * fresh
    for eta in (0.0, 0.3, 1.0):
        # A scaling so large that the boundary conditions take nothing away from the prediction.
        schedule = lcm_schedule(
            levels,
            timesteps,
            "epsilon",
            eta=torch.full((4,), eta, dtype=torch.float64),
            timestep_scaling=1e9,
        )
        mean = schedule.latents_coef * latents + schedule.output_coef * fresh
        kept = sigma[1:] * math.cos(eta * math.pi / 2)
        assert torch.allclose(mean[:-1], alpha[1:] * image + kept * fresh, atol=1e-7)
        assert torch.allclose(schedule.std[:-1] ** 2 + kept**2, sigma[1:] ** 2)
        assert mean[-1] == pytest.approx(image, abs=1e-6)
        assert schedule.std[-1] == 0


def test_full_noise_has_the_bits_of_the_published_sampler():
    timesteps = distilled_timesteps(8, original_steps=50, train_steps=1000, spacing="strided")
    levels = diffusers_scheduler().alphas_cumprod
    plain = lcm_schedule(levels, timesteps, "epsilon")
    full = lcm_schedule(levels, timesteps, "epsilon", eta=torch.ones(8, dtype=torch.float64))
    for name in ("latents_coef", "output_coef", "std"):
        assert torch.equal(getattr(plain, name), getattr(full, name))


def test_the_timesteps_can_be_given_as_of_dmd2():
    scheduler = diffusers_scheduler()
    noise, settings = Noise(scheduler.config, scheduler.alphas_cumprod), LcmSettings(timesteps=(999, 749, 499, 249))
    assert SAMPLER.schedule(settings, noise, 4, 0.0).timesteps.tolist() == [999, 749, 499, 249]
    assert SAMPLER.in_diffusers(settings, noise, 4).arguments == {"timesteps": [999, 749, 499, 249]}
    with pytest.raises(ConfigError, match=r"sampler.timesteps names 4 timesteps, and sample.steps is 2"):
        SAMPLER.schedule(settings, noise, 2, 0.0)
    for wrong in ((249, 999), (1000,)):
        with pytest.raises(ConfigError, match="they fall, from at most 999"):
            SAMPLER.schedule(LcmSettings(timesteps=wrong), noise, len(wrong), 0.0)
