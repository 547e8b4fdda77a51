"""Learning with the core alone: the gradient is that of the expected reward, and PPO climbs it."""

import math

import pytest
import torch
from torch import Tensor

from rlcm_cli.core.advantages import per_prompt_advantages
from rlcm_cli.core.gaussian import take_action
from rlcm_cli.core.lcm import NoiseSchedule, sample_trajectories, transition
from rlcm_cli.core.objectives import ppo_clip
from rlcm_cli.core.trajectory import flatten_transitions

ACTIONS = 3
SCHEDULE = NoiseSchedule(
    torch.tensor([999, 759, 499, 259]), torch.tensor([0.05, 0.2, 0.5, 0.8], dtype=torch.float64), "sample"
)


def linear_predict(parameters_2A: Tensor):
    """x₀ = gain · x + bias, with a gain and bias for each action; those of the last call are fixed.

    The last call is no action, so no policy gradient goes through it.
    """
    fixed = torch.tensor([[0.7], [0.1]], dtype=torch.float64)
    gain, bias = torch.cat([parameters_2A, fixed], 1)

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        call = (SCHEDULE.timesteps == timesteps[:, None]).int().argmax(1)
        return gain[call].view(-1, 1, 1, 1) * latents + bias[call].view(-1, 1, 1, 1)

    return predict


def sample_and_reward(parameters_2A: Tensor, noise: Tensor):
    trajectories, final = sample_trajectories(linear_predict(parameters_2A), SCHEDULE, noise, "sum", torch.float64)
    return trajectories, -((final - 1.5) ** 2).flatten(1).mean(1)


def draw(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, ACTIONS + 1, 1, 1, 2, generator=generator, dtype=torch.float64)


def test_the_policy_gradient_is_that_of_the_expected_reward():
    parameters = torch.tensor([[0.4, 0.6, 0.5], [0.2, -0.1, 0.3]], dtype=torch.float64)

    # Finite differences with the same noise on both sides; the reward is quadratic in each parameter, so the
    # central difference is exact.
    noise, width = draw(50_000, 1), 0.05
    difference, difference_error = torch.zeros(2, ACTIONS), torch.zeros(2, ACTIONS)
    for position in range(parameters.numel()):
        shift = torch.zeros_like(parameters)
        shift.view(-1)[position] = width
        up, down = (sample_and_reward(parameters + sign * shift, noise)[1] for sign in (1, -1))
        slope = (up - down) / (2 * width)
        difference.view(-1)[position] = slope.mean()
        difference_error.view(-1)[position] = slope.std() / math.sqrt(len(noise))

    # The policy gradient as training takes it: transitions of mixed steps, re-scored in one batch.
    gradients = []
    for batch in draw(200_000, 2).split(4_000):
        with torch.no_grad():
            trajectories, rewards = sample_and_reward(parameters, batch)
        flat = flatten_transitions(trajectories, torch.arange(len(batch)))
        policy = parameters.clone().requires_grad_()
        output = linear_predict(policy)(flat.states_NCHW, SCHEDULE.timesteps[flat.steps_N])
        gaussian = transition(SCHEDULE, output, flat.states_NCHW, flat.steps_N)
        _, log_probs = take_action(gaussian.mean, gaussian.std, action=flat.actions_NCHW, reduction="sum")
        # A constant baseline keeps the estimate unbiased; −1.4 is near the mean reward.
        result = ppo_clip(log_probs, flat.log_probs_N, (rewards + 1.4)[flat.samples_N], 1e-4)
        assert result.ratio_drift < 1e-12
        result.loss.backward()
        gradients.append(-policy.grad * ACTIONS)  # the loss is a mean over transitions
    estimates = torch.stack(gradients)
    estimate, estimate_error = estimates.mean(0), estimates.std(0) / math.sqrt(len(estimates))

    error = (estimate_error**2 + difference_error**2).sqrt()
    assert (error < 0.04 * difference.abs().max()).all(), "a test with such errors could not fail"
    assert ((estimate - difference).abs() <= 3 * error).all(), (estimate, difference, error)


@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_reaches_the_known_optimum(seed):
    """Two prompts, each with a target of its own and rewards on scales of their own."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor([[0.5, -0.4, 0.3], [-0.6, 0.2, 0.7]])
    scale, offset = torch.tensor([1.0, 50.0]), torch.tensor([0.0, -300.0])
    std, iterations, group = torch.full((1, 1), 0.2), 80, 64
    means = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.Adam([means])
    names, index = ["a"] * group + ["b"] * group, torch.arange(2).repeat_interleave(group)
    statistics, clipped = {}, []
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - iteration / iterations)
        with torch.no_grad():
            actions, old = take_action(
                means[index], std, noise=torch.randn(2 * group, 3, generator=generator), reduction="mean"
            )
        rewards = offset[index] - scale[index] * ((actions - targets[index]) ** 2).sum(1)
        advantages, statistics = per_prompt_advantages(
            names, rewards.tolist(), statistics, buffer_size=2 * group, min_count=16
        )
        for _ in range(3):
            for rows in torch.randperm(2 * group, generator=generator).split(group):
                _, new = take_action(means[index[rows]], std, action=actions[rows], reduction="mean")
                result = ppo_clip(new, old[rows], torch.from_numpy(advantages).float()[rows], 0.1)
                optimizer.zero_grad()
                result.loss.backward()
                optimizer.step()
                clipped.append(result.clip_fraction.item())
    assert (means.detach() - targets).abs().max() < 0.05
    assert max(clipped) > 0.2, "the clip acts"
    assert max(clipped[:: len(clipped) // iterations]) == 0, "and never at the first update of an iteration"
