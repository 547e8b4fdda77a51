"""Schedules that draw noise at any of their calls: what is recorded, and that it is scored as it was drawn."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlcm_cli.core.gaussian import take_action
from rlcm_cli.core.schedule import Schedule, sample_trajectories, transition
from rlcm_cli.core.trajectory import flatten_transitions

CALLS = 5
SHAPE = (4, 8, 8)


def make_schedule(*draws: int, **settings: float) -> Schedule:
    """Five calls at times that are not whole, of which some draw noise."""
    times = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.25], dtype=torch.float64)
    a, b = torch.rand(2, CALLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = torch.zeros(CALLS, dtype=torch.float64)
    std[list(draws)] = torch.arange(1, 1 + len(draws)).double() / 10
    return Schedule(times, torch.cat([times[1:], times.new_zeros(1)]), a, b, std, **settings)


def draw(schedule, noise):
    """Give the trajectories, the final latents, and what the model was fed, the final latents behind it."""
    fed = []

    def predict(latents, times):
        fed.append(latents)
        return (latents * 0.7).sin() + times.float().view(-1, 1, 1, 1)

    trajectories, final = sample_trajectories(predict, schedule, noise, "mean", torch.float32)
    return trajectories, final, [*fed, final]


def make_noise(actions: int) -> torch.Tensor:
    return torch.randn(3, actions + 1, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("draws", "recorded", "states"),
    [
        ((0, 1, 2, 3, 4), [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
        ((0, 1, 2, 3), [0, 1, 2, 3, 4], [0, 1, 2, 3]),
        ((1, 2), [1, 2, 3, 4], [0, 1]),
        ((0, 3), [0, 1, 3, 4], [0, 2]),
        ((0, 2), [0, 1, 2, 3, 4], [0, 2]),
        ((0,), [0, 1, 4], [0]),
        ((4,), [4, 5], [0]),
        ((), [4], []),
    ],
)
def test_what_is_recorded_is_scored_as_it_was_drawn(draws, recorded, states):
    schedule = make_schedule(*draws)
    assert schedule.find_fault() is None
    assert (schedule.actions, schedule.recorded_calls) == (len(draws), recorded)
    trajectories, _, fed = draw(schedule, make_noise(len(draws)))
    assert torch.equal(trajectories.latents_BSCHW, torch.stack([fed[call] for call in recorded], 1))
    assert (trajectories.calls_A.tolist(), trajectories.positions.tolist()) == (list(draws), states)
    times = [*schedule.timesteps.tolist(), 0.0]
    assert trajectories.timesteps_A2.tolist() == [[times[call], times[call + 1]] for call in draws]

    actions = torch.arange(len(draws))
    flat = flatten_transitions(trajectories, torch.arange(3), actions.expand(3, -1))
    assert flat.calls_N.tolist() == [call for call in draws for _ in range(3)]
    if draws:
        assert torch.equal(flat.states_NCHW, torch.cat([fed[call] for call in draws]))
        assert torch.equal(flat.actions_NCHW, torch.cat([fed[call + 1] for call in draws]))
        output = (flat.states_NCHW * 0.7).sin() + schedule.timesteps[flat.calls_N].float().view(-1, 1, 1, 1)
        gaussian = transition(schedule, output, flat.states_NCHW, flat.calls_N)
        _, scored = take_action(gaussian.mean, gaussian.std, action=flat.actions_NCHW, reduction="mean")
        assert torch.equal(scored, flat.log_probs_N)


def test_each_action_has_the_next_noise_of_its_sample():
    noise = make_noise(2)
    _, final, _ = draw(make_schedule(1, 3), noise)
    latents, schedule = noise[:, 0], make_schedule(1, 3)
    for call in range(CALLS):
        output = (latents * 0.7).sin() + schedule.timesteps[call].float()
        gaussian = transition(schedule, output, latents, torch.full((3,), call))
        latents = gaussian.mean + {1: 0.1 * noise[:, 1], 3: 0.2 * noise[:, 2]}.get(call, 0)
    torch.testing.assert_close(final, latents, rtol=1e-6, atol=1e-6)


def test_the_initial_noise_is_scaled():
    noise, schedule = make_noise(2), make_schedule(0, 2, initial_scale=14.5)
    trajectories, _, fed = draw(schedule, noise)
    assert torch.equal(trajectories.latents_BSCHW[:, 0], 14.5 * noise[:, 0])
    assert torch.equal(fed[0], 14.5 * noise[:, 0])
    assert schedule.to(torch.device("cpu")).initial_scale == 14.5


def test_a_schedule_on_a_device_has_all_its_tensors_there():
    moved = make_schedule(1).to(torch.device("meta"))
    tensors = [getattr(moved, field.name) for field in dataclasses.fields(moved) if field.name != "initial_scale"]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("shape", [(6, 16), (3, 2, 4, 4), (5,)])
def test_latents_of_any_rank_are_drawn_and_scored(shape):
    schedule = make_schedule(1, 2)
    noise = torch.randn(3, 3, *shape, generator=torch.Generator().manual_seed(2))
    trajectories, final = sample_trajectories(lambda latents, _: latents.sin(), schedule, noise, "mean", torch.float32)
    assert final.shape == (3, *shape)
    assert trajectories.latents_BSCHW.shape == (3, 4, *shape)
    flat = flatten_transitions(trajectories, torch.arange(3), torch.arange(2).expand(3, -1))
    gaussian = transition(schedule, flat.states_NCHW.sin(), flat.states_NCHW, flat.calls_N)
    _, scored = take_action(gaussian.mean, gaussian.std, action=flat.actions_NCHW, reduction="mean")
    assert torch.equal(scored, flat.log_probs_N)


def test_calls_are_weighed_by_their_noise():
    schedule = make_schedule(0, 1, 3)  # of noise 0.1, 0.2, 0.3
    assert schedule.weigh_calls(0)[[0, 1, 3]].tolist() == [1.0, 1.0, 1.0]
    assert schedule.weigh_calls(1).tolist() == pytest.approx([0.5, 1.0, 0, 1.5, 0])
    assert schedule.weigh_calls(2).tolist() == pytest.approx([3 / 14, 12 / 14, 0, 27 / 14, 0])
