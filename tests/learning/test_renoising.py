"""Drawn images noised again: the noise that belongs to them, and what each kind of model is fed and should predict."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from phase_runs import make_config, prepare
from plain_diffusion import build_plain_diffusion
from tiny_sana import build_sana, build_sana_sprint

from rlcm_cli.learning.renoising import draw_calls, find_noise_levels, find_output, noise_again
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.schedules import build_schedule
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.samplers import SAMPLERS
from rlcm_cli.store.checkpoint import read_trainer_state


@pytest.fixture(scope="module")
def folders(tiny_lcm, tmp_path_factory):
    """Sampler → a pipeline that it draws with."""
    root = tmp_path_factory.mktemp("models")
    plain = build_plain_diffusion(root / "sd", tiny_lcm)
    others = {"flow": build_sana(root / "sana"), "scm": build_sana_sprint(root / "sprint")}
    return {kind: others.get(kind, plain) for kind in SAMPLERS}


@pytest.fixture(scope="module")
def drawn(tiny_lcm, tmp_path_factory):
    config = make_config(tiny_lcm, objective={"kind": "nft"})
    run, model = prepare(tmp_path_factory.mktemp("runs") / "run", config)
    return model, read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_last_call_finds_the_image_where_the_prediction_is_right(folders, kind):
    model = load_model(str(folders[kind]), revision=None, dtype="float32", device="cpu", sampler=kind)
    schedule = build_schedule(model, model.sampler.drawing_settings(), 4)
    alpha, sigma = find_noise_levels(model, schedule.timesteps)
    assert alpha.dtype == sigma.dtype == torch.float32
    assert (sigma.diff() < 0).all(), "falling, as the times do"
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(200, generator=generator) for _ in range(2))
    noised = alpha[-1] * image + sigma[-1] * noise
    output = {"velocity": noise - image, "epsilon": noise}[find_output(model)]
    found = schedule.latents_coef[-1] * noised + schedule.output_coef[-1] * output
    # A DDIM's last call leaves as much noise as the first timestep of its training has, 3 %.
    torch.testing.assert_close(found.float(), image, atol=1e-5 if model.sampler.levels != "alpha_bar" else 0.1, rtol=0)


def test_a_time_between_two_has_a_level_between_theirs(drawn):
    model, _ = drawn
    alpha, sigma = find_noise_levels(model, torch.tensor([10.0, 10.25, 11.0, 999.0], dtype=torch.float64))
    squared = model.alphas_cumprod[[10, 10, 11, 999]]
    squared[1] = 0.75 * squared[0] + 0.25 * squared[2]
    torch.testing.assert_close(alpha, squared.sqrt())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4))


def test_the_calls_of_a_sample_are_its_own_and_none_twice(drawn):
    _, rollout = drawn
    calls = draw_calls(rollout, 0, torch.arange(8), 3)
    assert calls.shape == (8, 3)
    assert all(len({*row}) == 3 and {*row} <= {0, 1, 2, 3} for row in calls.tolist())
    assert len({tuple(row) for row in calls.tolist()}) > 1
    assert torch.equal(draw_calls(rollout, 0, torch.tensor([5, 2]), 3), calls[[5, 2]])
    assert not torch.equal(draw_calls(rollout, 1, torch.arange(8), 3), calls)


def test_noise_belongs_to_the_sample_or_the_owner(drawn):
    model, rollout = drawn

    def noise(epoch, samples, calls, owners):
        found = noise_again(model, rollout, epoch, *(torch.tensor(part) for part in (samples, calls, owners)))
        return found.target_NCHW, found

    together, found = noise(0, [3, 5], [1, 2], [3, 5])
    assert torch.equal(noise(0, [5], [2], [5])[0][0], together[1])
    assert torch.equal(noise(0, [7], [2], [5])[0][0], together[1])
    for other in (noise(1, [5], [2], [5]), noise(0, [5], [3], [5]), noise(0, [5], [2], [4])):
        assert not torch.equal(other[0][0], together[1])
    # What the model is fed is the image and this noise; this model predicts the noise.
    alpha_bar = model.alphas_cumprod[rollout.schedule.timesteps[[1, 2]]].view(-1, 1, 1, 1)
    expected = alpha_bar.sqrt() * rollout.final_latents[[3, 5]] + (1 - alpha_bar).sqrt() * together
    torch.testing.assert_close(found.latents_NCHW, expected)
    torch.testing.assert_close(found.levels_N, (1 / (1 + (alpha_bar / (1 - alpha_bar)).sqrt())).flatten())
    assert found.timesteps_N.tolist() == rollout.schedule.timesteps[[1, 2]].tolist()


def test_without_final_latents_there_is_nothing_to_noise(drawn):
    model, rollout = drawn
    without = dataclasses.replace(rollout, final_latents=None)
    with pytest.raises(RuntimeError, match=r"Need\.FINAL_LATENTS"):
        noise_again(model, without, 0, *[torch.tensor([0])] * 3)
