"""Learning with the core alone: the gradient is that of the expected reward, and each objective climbs it."""

import math

import pytest
import torch
from torch import Tensor

from rlcm_cli.core.advantages import ADVANTAGES, per_prompt_advantages
from rlcm_cli.core.gaussian import gaussian_kl, gaussian_log_ratio, take_action
from rlcm_cli.core.objectives import (
    dppo,
    grpo_guard,
    neighbour_pairs,
    ppo_clip,
    rebel_weights,
    reinforce,
    rwr_sparse_weights,
    rwr_weights,
)
from rlcm_cli.core.schedule import sample_trajectories, transition
from rlcm_cli.core.trajectory import flatten_transitions
from rlcm_cli.samplers.lcm import lcm_schedule

ACTIONS = 3
TIMESTEPS = torch.tensor([999, 759, 499, 259])
ALPHAS = torch.zeros(1000, dtype=torch.float64).index_put((TIMESTEPS,), torch.tensor([0.05, 0.2, 0.5, 0.8]).double())
SCHEDULE = lcm_schedule(ALPHAS, TIMESTEPS, "sample")


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
        flat = flatten_transitions(
            trajectories, torch.arange(len(batch)), torch.arange(ACTIONS).expand(len(batch), -1)
        )
        policy = parameters.clone().requires_grad_()
        output = linear_predict(policy)(flat.states_NCHW, SCHEDULE.timesteps[flat.calls_N])
        gaussian = transition(SCHEDULE, output, flat.states_NCHW, flat.calls_N)
        _, log_probs = take_action(gaussian.mean, gaussian.std, action=flat.actions_NCHW, reduction="sum")
        # A constant baseline keeps the estimate unbiased; −1.4 is near the mean reward.
        result = ppo_clip(log_probs, flat.log_probs_N, (rewards + 1.4)[flat.samples_N], 1e-4)
        assert result.metrics["ratio_drift"] < 1e-12
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
                clipped.append(result.metrics["clip_fraction"].item())
    assert (means.detach() - targets).abs().max() < 0.05
    assert max(clipped) > 0.2, "the clip acts"
    assert max(clipped[:: len(clipped) // iterations]) == 0, "and never at the first update of an iteration"


class Walk:
    """Two steps from 0 to near a target of the prompt: x₁ = a₁, x₂ = gain · x₁ + a₂, each with noise.

    The reward −|x₂ − target|² of two prompts has an offset of its own each, far above its differences. Its mean is
    known in closed form, and the best policy too: the mean of x₂ at the target, and gain 0, as the gain
    carries the noise of the first step into the second.
    """

    std = torch.tensor(0.3)
    targets = torch.tensor([[0.5, -0.4], [-0.6, 0.7]])
    offsets = torch.tensor([40.0, -40.0])

    def __init__(self):
        self.shifts = torch.zeros(2, 2, 2, requires_grad=True)  # [step, prompt, dimension]
        self.gain = torch.tensor(0.8, requires_grad=True)

    def mean(self, step, states, prompts):
        return step * self.gain * states + self.shifts[step, prompts]

    def sample(self, prompts, generator):
        """Give states [M, 3, 2] and rewards [M]."""
        states = [torch.zeros(len(prompts), 2)]
        with torch.no_grad():
            for step in range(2):
                noise = torch.randn(len(prompts), 2, generator=generator)
                mean = self.mean(step, states[-1], prompts)
                states.append(take_action(mean, self.std, noise=noise, reduction="sum")[0])
        rewards = self.offsets[prompts] - ((states[-1] - self.targets[prompts]) ** 2).sum(1)
        return torch.stack(states, 1), rewards

    def means(self, states, prompts):
        """Mean of each action, [2 · M, 2]: all first ones, then the second."""
        return torch.cat([self.mean(step, states[:, step], prompts) for step in range(2)])

    def log_probs(self, states, prompts):
        """Log-probability of each action, [M, 2]."""
        means, actions = self.means(states, prompts), states[:, 1:].transpose(0, 1).flatten(0, 1)
        return take_action(means, self.std, action=actions, reduction="sum")[1].view(2, -1).T

    def regret(self):
        """Expected reward that the best policy has more, mean over the prompts."""
        with torch.no_grad():
            miss = self.gain * self.shifts[0] + self.shifts[1] - self.targets
            return ((miss**2).sum(1).mean() + 2 * (self.gain * self.std) ** 2).item()


def ppo_loss(log_probs, old, advantages, groups):
    return ppo_clip(log_probs.flatten(), old.flatten(), advantages.repeat_interleave(2), 0.2).loss


def reinforce_loss(log_probs, old, weights, groups):
    return reinforce(log_probs.flatten(), old.flatten(), weights.repeat_interleave(2)).loss


def rebel_surrogate_loss(log_probs, old, rewards, groups):
    log_ratios = (log_probs.detach() - old).sum(1)
    weights = rebel_weights(log_ratios, rewards, neighbour_pairs(groups), 1.0)
    return reinforce_loss(log_probs, old, -log_probs.numel() * weights, groups)


def rwr_loss(log_probs, old, advantages, groups):
    return reinforce_loss(log_probs, old, len(advantages) * rwr_weights(advantages, 0.2), groups)


def rwr_sparse_loss(log_probs, old, advantages, groups):
    return reinforce_loss(log_probs, old, len(advantages) * rwr_sparse_weights(advantages, 0.1), groups)


class Region:
    """An objective that compares means, with a step of its own for each walk."""

    def __init__(self, walk, loss):
        self.walk, self.loss = walk, loss

    def remember(self, states, prompts):
        """Let the present policy be the old one."""
        self.states, self.prompts = states, prompts
        with torch.no_grad():
            self.old_means = self.walk.means(states, prompts)

    def __call__(self, advantages):
        means, actions = self.walk.means(self.states, self.prompts), self.states[:, 1:].transpose(0, 1).flatten(0, 1)
        std = self.walk.std.expand(len(means), 1)
        log_ratios = gaussian_log_ratio(actions, means, self.old_means, std, "sum")
        kl = gaussian_kl(means, self.old_means, std, "sum")
        return self.loss(log_ratios, kl, std.flatten(), advantages.repeat(2))


def dppo_loss(log_ratios, kl, std, advantages):
    return dppo(log_ratios, kl, advantages, 0.02)


def guard_loss(log_ratios, kl, std, advantages):
    return grpo_guard(log_ratios, kl, std, torch.ones_like(kl), advantages, 0.1)


@pytest.mark.parametrize(
    ("loss", "advantage", "acts"),
    [(dppo_loss, "per-prompt", "masked_fraction"), (guard_loss, "group", "clip_fraction")],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_trust_region_reaches_the_known_optimum(loss, advantage, acts, seed):
    generator, walk = torch.Generator().manual_seed(seed), Walk()
    region, samples, rounds, measured = Region(walk, loss), 256, 100, []
    groups = torch.arange(samples) // 4
    prompts = groups % 2
    optimizer = torch.optim.Adam([walk.shifts, walk.gain])
    before = walk.regret()
    for number in range(rounds):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - number / rounds)
        states, rewards = walk.sample(prompts, generator)
        advantages, _ = ADVANTAGES[advantage](
            ["ab"[prompt] for prompt in prompts],
            rewards.tolist(),
            {},
            groups=groups.tolist(),
            buffer_size=samples,
            min_count=16,
        )
        region.remember(states, prompts)
        for update in range(4):
            result = region(torch.from_numpy(advantages).float())
            assert update or result.metrics[acts] == 0, "it never acts at the first update of an iteration"
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
            measured.append(result.metrics[acts].item())
    assert walk.regret() < 0.005 * before
    assert max(measured) > 0.1, "it acts"


@pytest.mark.parametrize(
    ("objective", "advantage", "updates"),
    [
        (ppo_loss, "per-prompt", 4),
        (ppo_loss, "group", 4),  # GRPO
        (reinforce_loss, "per-prompt", 1),
        (reinforce_loss, "leave-one-out", 1),
        (rebel_surrogate_loss, None, 4),  # on rewards: the pairing takes the offsets out
        (rwr_loss, "per-prompt", 4),
        (rwr_sparse_loss, "per-prompt", 4),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_objective_reaches_the_known_optimum(objective, advantage, updates, seed):
    generator = torch.Generator().manual_seed(seed)
    walk, samples, rounds, statistics = Walk(), 256, 400 // updates, {}
    groups = torch.arange(samples) // 4
    prompts = groups % 2
    names = ["ab"[prompt] for prompt in prompts]
    optimizer = torch.optim.Adam([walk.shifts, walk.gain])
    before = walk.regret()
    for number in range(rounds):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - number / rounds)
        states, taught = walk.sample(prompts, generator)
        if advantage is not None:
            advantages, statistics = ADVANTAGES[advantage](
                names, taught.tolist(), statistics, groups=groups.tolist(), buffer_size=samples, min_count=16
            )
            taught = torch.from_numpy(advantages).float()
        old = walk.log_probs(states, prompts).detach()
        for _ in range(updates):
            optimizer.zero_grad()
            objective(walk.log_probs(states, prompts), old, taught, groups).backward()
            optimizer.step()
    assert walk.regret() < 0.005 * before
