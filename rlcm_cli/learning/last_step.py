"""The last model calls by back-propagation: the gradient of differentiable rewards through image, decoder and model.

An LCM's last call draws no noise, so that no policy gradient reaches it, and with two calls half of the sampler goes
untrained (LaSRO, arXiv 2411.15247). Its image is a differentiable function of the adapter, though: with x the last
stored state, the gradient of the expected reward is that of the policy, of x, plus E[∇ r(image(x))] with x held.

So it may go on through the actions before, x' = μ(x) + σ n with the noise n held, as DRaFT-K does through the last K
calls (arXiv 2309.17400): x is then the state before the first of them. Of those actions the policy gradient would be
a second, noisier estimate of the same, and they have none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import Config, LastStepSettings
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning.advantages import rows_of
from rlcm_cli.learning.loss_scale import LossScale
from rlcm_cli.learning.replay import pick_conditioning, predict_transition
from rlcm_cli.learning.rollout import Rollout, sample_seed
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.processes.job import Processes
from rlcm_cli.rewards import Reward

EPSILON = 1e-6


@dataclass(frozen=True)
class PathwiseReward:
    """A differentiable reward in the units of the policy gradient that it is added to."""

    reward: Reward
    weights: Tensor
    """Of the reward in each sample's training reward, float32 [B]; 0 where the sample's task does not have it."""
    factors: Tensor
    """What turns the reward of each sample into its part of the advantage, float32 [B]."""


def choose_pathwise(rollout: Rollout, config: Config, rewards: Mapping[str, Reward]) -> list[PathwiseReward]:
    """Return the differentiable ones of the rewards that are trained for.

    A reward is divided by its standard deviation over the samples of its task in the round, and weighted as in
    `combine_advantages`. Of `batch` advantages, that is their own divisor; those of a prompt or group divide by the
    deviation of their prompt or group, which may be 0 and would then leave this gradient without bound. A reward that
    does not differ has the factor 0. `leave-one-out` and `none` keep the unit of the reward, and so does this.
    Raises `ConfigError` where none is differentiable.
    """
    tasks = config.joint_tasks()
    trained = [name for name in config.reward_names() if any(task.rewards.get(name) for task in tasks.values())]
    chosen = [name for name in trained if rewards[name].differentiable]
    if not chosen:
        raise ConfigError(
            f"last_step.mode backprop needs a differentiable reward, and none of {', '.join(trained)} is; add one "
            "(`rlcm rewards` says which are), or use another last_step.mode"
        )
    count = len(rollout.tasks)
    weights = {name: torch.zeros(count) for name in chosen}
    factors = {name: torch.zeros(count) for name in chosen}
    for task, choice in tasks.items():
        rows = rows_of(rollout.tasks, task)
        summed = choice.combine == "sum"
        norm = 1.0 if summed else math.sqrt(sum(weight**2 for weight in choice.rewards.values()))
        for name in set(chosen) & set(choice.rewards):
            values = (rollout.rewards if summed else rollout.components[name])[rows]
            weights[name][rows] = choice.rewards[name]
            if config.advantage_kind in ("leave-one-out", "none"):
                factors[name][rows] = choice.rewards[name] / norm
            elif (values != values[0]).any():
                factors[name][rows] = choice.rewards[name] / (norm * (values.std(correction=0).item() + EPSILON))
    return [PathwiseReward(rewards[name], weights[name], factors[name]) for name in chosen]


def tell_pathwise(config: Config, chosen: Sequence[PathwiseReward]) -> str | None:
    """Return which trained rewards have no gradient through the last call; None where all have one."""
    named = {part.reward.name for part in chosen}
    rewards = [task.rewards for task in config.joint_tasks().values()]
    trained = dict.fromkeys(name for of_task in rewards for name, weight in of_task.items() if weight)
    left_out = [name for name in trained if name not in named]
    if not left_out:
        return None
    return (
        f"last_step.mode backprop: {', '.join(left_out)} cannot be differentiated, so that the last call learns from "
        f"{', '.join(sorted(named))} only"
    )


def accumulate_last_step(
    model: LatentModel,
    rollout: Rollout,
    samples_M: Tensor,
    rewards: list[PathwiseReward],
    *,
    settings: LastStepSettings,
    micro_batch_size: int,
    processes: Processes = Processes(),
) -> dict[str, Tensor]:
    """Add the gradient of the rewards through the last calls to the adapter's, and return its metrics.

    The policy's loss is a mean over its actions, and its log-probabilities usually over the latents' D values too: so
    this one is divided by their number and D as well. With a weight of 1 and advantages of the batch, which no clip
    cuts, both are parts of the gradient of one expected reward; with others nearly so, as `choose_pathwise` says.

    Args:
        model: With the adapter.
        rollout: The round.
        samples_M: The samples of the optimizer step, int64 [M], rows of the rollout.
        rewards: Of `choose_pathwise`.
        settings: Through how many calls, and the weight of this gradient relative to the policy's.
        micro_batch_size: Samples in one forward and backward pass.
        processes: Of several processes, each adds and measures its part of the samples.

    Returns:
        `last_step_reward`: mean over samples of the weighted sum of these rewards, on unrounded images.

    Raises:
        RewardError: If a reward fails or gives no gradient.
    """
    states = rollout.trajectories.latents_BSCHW
    share = settings.weight / max(1, rollout.trajectories.actions - settings.own_actions)
    if rollout.manifest.reduction == "mean":
        share /= states[0, 0].numel()
    share /= len(samples_M)
    scale = LossScale(model, values=1)  # the gradient by the images, in float32, tells how large it is
    mean_reward = torch.zeros(())

    def compute(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drawn = draw_images(model, rollout, samples, settings.calls)
        images = drawn.detach().requires_grad_()
        loss, total = torch.zeros((), device=model.device), torch.zeros(())
        for part in rewards:
            values = part.reward.score_floats(
                images, [rollout.prompts[row] for row in samples.tolist()], _metadata(rollout, samples)
            )
            loss = loss - (part.factors[samples].to(values.device) * values).sum().to(model.device)
            total += (part.weights[samples] * values.detach().cpu()).sum()
        (gradient,) = torch.autograd.grad(share * loss, images, materialize_grads=True)
        return drawn, gradient, total

    own = processes.part(len(samples_M))
    for first in own[::micro_batch_size]:
        samples = samples_M[first : min(first + micro_batch_size, own.stop)]
        mean_reward += scale.add_gradient(functools.partial(compute, samples)) / len(samples_M)
    return {"last_step_reward": mean_reward, **scale.metrics()}


def draw_images(model: LatentModel, rollout: Rollout, samples: Tensor, calls: int) -> Tensor:
    """Make the last calls again, from the state before them: images, float32 [M, 3, H, W], differentiable.

    An action between them is the stored one, whatever the policy is now, with the gradient of its mean.
    """
    conditioning = pick_conditioning(model, rollout, samples)
    stored = rollout.trajectories.latents_BSCHW[samples, -calls:].to(model.device)
    latents = stored[:, 0]
    for number, call in enumerate(range(rollout.schedule.steps - calls, rollout.schedule.steps), 1):
        at_call = torch.full((len(samples),), call, device=model.device)
        mean = predict_transition(model, rollout, latents, at_call, conditioning).mean
        latents = (
            mean.to(model.dtype) if number == calls else stored[:, number] + (mean - mean.detach()).to(model.dtype)
        )
    return model.decode_floats(latents)


def _metadata(rollout: Rollout, samples: Tensor) -> list[dict[str, object]]:
    manifest = rollout.manifest
    return [
        {
            "iteration": manifest.iteration,
            "sample": sample,
            "seed": sample_seed(manifest, sample),
            "group": sample // manifest.group_size,
        }
        for sample in samples.tolist()
    ]
