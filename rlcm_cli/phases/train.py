"""Phase 3: PPO over the stored trajectories of the newest checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import TrainSettings
from rlcm_cli.core.gaussian import gaussian_kl, take_action
from rlcm_cli.core.lcm import NoiseSchedule, transition
from rlcm_cli.core.noise import derive_seed
from rlcm_cli.core.objectives import ppo_clip
from rlcm_cli.core.trajectory import Trajectories, Transitions, flatten_transitions, join_trajectories
from rlcm_cli.errors import ForeignFileError, MissingFileError, StalePolicyError, TrainingError
from rlcm_cli.models.lcm import ConsistencyModel
from rlcm_cli.models.lora import base_model, lora_parameters, optimizer_tensors, restore_optimizer, save_lora
from rlcm_cli.phases.advantages import compute_advantages, flat_prompts, reward_metrics, sum_rewards
from rlcm_cli.phases.events import Advanced, Event, IterationTrained, PhaseSkipped, PhaseStarted, Warned
from rlcm_cli.phases.policy import load_checkpoint
from rlcm_cli.phases.run import Run
from rlcm_cli.store.checkpoint import (
    TrainerState,
    latest_checkpoint,
    publish_checkpoint,
    read_optimizer,
    read_statistics,
)
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.rollouts import RolloutShard, missing_shards, read_rewards, read_shard
from rlcm_cli.store.run import publish_metrics
from rlcm_cli.store.shards import REMEDY

RATIO_TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
"""Largest |ratio − 1| before the first update that rounding explains, for the mean reduction."""


def train(run: Run, model: ConsistencyModel, *, off_policy: bool = False) -> Iterator[Event]:
    """Update the policy of the newest checkpoint on its rollout, and publish the next checkpoint.

    `off_policy` admits a rollout that another policy drew, which importance ratios then correct for.
    Raises `MissingFileError` for shards or rewards that are not there, `StalePolicyError`, `TrainingError`.
    """
    run.config.require_actions()
    layout, settings = run.layout, run.config.train
    iteration = latest_checkpoint(layout)
    if not layout.manifest(iteration).exists():
        if iteration == 0:
            raise MissingFileError(
                f"{layout.root}: holds no rollouts to train on; run `rlcm sample --run {layout.root}` first"
            )
        yield PhaseSkipped("train", iteration, "its checkpoint is there and nothing was sampled since")
        return
    started = time.perf_counter()
    state = load_checkpoint(run, model, iteration)
    rollout = read_rollout(run, model, state, off_policy=off_policy)
    advantages, statistics = compute_advantages(rollout, run.config, read_statistics(layout, iteration))
    clipped = torch.from_numpy(advantages).clamp(-settings.advantage_clip, settings.advantage_clip).float()
    flat = flat_prompts(rollout, run.config)
    if flat:
        yield Warned(
            f"iteration {iteration}: all images of a prompt have the same reward, for {len(flat)} prompts "
            f"(such as '{flat[0]}'): they teach nothing"
        )
    if not clipped.any():
        raise TrainingError(
            f"{layout.rollout(iteration)}: all rewards are equal ({rollout.rewards[0]:.4g}), so there is nothing to "
            "learn from; use another reward, or more images an iteration"
        )

    parameters = lora_parameters(model)
    rate = learning_rate(settings, iteration)
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
    )
    restore_optimizer(optimizer, parameters, read_optimizer(layout, iteration))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    updates = math.ceil(len(clipped) / (settings.minibatch_size or len(clipped))) * settings.inner_epochs
    yield PhaseStarted("train", iteration, updates, "updates")
    records: list[UpdateMetrics] = []
    model.adapter_digest = None  # from the first step on the weights are no file's, also where a later one fails
    for minibatch in draw_minibatches(settings, len(clipped), run.config.seed, iteration):
        optimizer.zero_grad(set_to_none=True)
        record = accumulate_gradient(
            model,
            rollout,
            flatten_transitions(rollout.trajectories, minibatch),
            clipped,
            settings,
            micro_batch_size=run.config.runtime.micro_batch_size,
        )
        if not records and not off_policy:
            check_ratio(record.ratio_drift, run.config.model.dtype, layout.rollout(iteration).name)
            if iteration == 0 and record.ratio_drift > settings.clip_range / 10:
                yield Warned(
                    f"rounding in {run.config.model.dtype} moves the probability ratio by {record.ratio_drift:.1e}, "
                    f"not small beside train.clip_range {settings.clip_range:.0e}: it clips updates at random; "
                    "--dtype float32 learns better"
                )
        record.grad_norm = float(
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm, error_if_nonfinite=False)
        )
        if not math.isfinite(record.grad_norm):
            raise TrainingError(
                f"iteration {iteration}: the gradient is {record.grad_norm}; use --dtype bfloat16 or float32, or a "
                "smaller train.learning_rate"
            )
        optimizer.step()
        records.append(record)
        yield Advanced(1)
    if all(torch.equal(before[name], parameter) for name, parameter in parameters.items()):
        raise TrainingError(
            f"iteration {iteration}: {len(records)} optimizer steps changed no weight of the adapter (learning rate "
            f"{rate:.3g}); its modules are not those that the gradient reaches, or the rate has decayed to 0"
        )

    metrics = {
        "iteration": iteration,
        "checkpoint": iteration + 1,
        **reward_metrics(rollout, run.config),
        **average(records),
        "ratio_drift": records[0].ratio_drift,
        "learning_rate": rate,
        "flat_prompts": len(flat),
        "samples": len(clipped),
        "updates": len(records),
        "train_seconds": time.perf_counter() - started,
        "finished_at": time.time(),
    }
    # Metrics first: a checkpoint says that its iteration is done, and no phase looks back.
    publish_metrics(layout, iteration + 1, metrics)
    publish_checkpoint(
        layout,
        iteration + 1,
        write_lora=lambda folder: save_lora(model, folder),
        model_digest=model.digest,
        optimizer=optimizer_tensors(optimizer, parameters),
        optimizer_steps=state.optimizer_steps + len(records),
        statistics=statistics,
    )
    yield IterationTrained(iteration + 1, metrics)


@dataclass(frozen=True)
class Rollout:
    """An iteration's samples, in the order of their plan."""

    manifest: RolloutManifest
    schedule: NoiseSchedule
    trajectories: Trajectories
    conditioning: Mapping[str, Tensor]
    """Name → [U, …]."""
    conditioning_index: Tensor
    """int64 [B], row of each sample."""
    prompts: list[str]
    tasks: list[str]
    """Task of each sample."""
    components: Mapping[str, Tensor]
    """Reward name → float32 [B]; NaN where the sample's task does not have it."""
    rewards: Tensor
    """The weighted sum of the rewards that the sample's task is trained for, float32 [B]."""


@dataclass
class UpdateMetrics:
    """What one optimizer step measured; means over its transitions but for the drift."""

    loss: float = 0.0
    ratio: float = 0.0
    approx_kl: float = 0.0
    clip_fraction: float = 0.0
    kl_to_base: float = 0.0
    grad_norm: float = 0.0
    ratio_drift: float = 0.0


def read_rollout(run: Run, model: ConsistencyModel, policy: TrainerState, *, off_policy: bool) -> Rollout:
    """Read and join the shards and rewards of the iteration that follows a checkpoint."""
    layout = run.layout
    manifest = read_manifest(layout.manifest(policy.number))
    path = layout.manifest(policy.number)
    if manifest.model_digest != model.digest:
        raise ForeignFileError(
            f"{path}: its samples come from another base model than '{run.config.model.name}' loads here; "
            + REMEDY.format(path=path.parent)
        )
    if manifest.policy.digest != policy.policy_digest and not off_policy:
        raise StalePolicyError(
            f"{path}: its samples were drawn by another policy than checkpoint {policy.number}; draw them anew "
            f"({REMEDY.format(path=path.parent)}), or train on them all the same with --off-policy"
        )
    absent = missing_shards(layout, manifest)
    if absent:
        raise MissingFileError(
            f"{path.parent}: {len(absent)} of {len(manifest.shards)} shards are not sampled yet (first: {absent[0]}); "
            f"run `rlcm sample --run {layout.root}`, then score them"
        )
    # Shards first: the rewards of a foreign shard do not fit it, but the shard is the one to blame.
    shards = [read_shard(layout, manifest, number) for number in range(len(manifest.shards))]
    components = {
        name: read_rewards(layout, manifest, spec.directory, run.scored_tasks(name))
        for name, spec in run.reward_specs().items()
    }
    tasks = [manifest.tasks[manifest.task_of(sample)] for sample in range(manifest.shards[-1][1])]
    conditioning, index = join_conditioning(shards)
    record = manifest.schedule
    timesteps = torch.tensor(record.timesteps)
    return Rollout(
        manifest=manifest,
        schedule=NoiseSchedule(
            timesteps, model.alphas_cumprod[timesteps], record.prediction_type, record.timestep_scaling
        ),
        trajectories=join_trajectories([shard.trajectories for shard in shards]),
        conditioning=conditioning,
        conditioning_index=index,
        prompts=[prompt for shard in shards for prompt in shard.sample_prompts()],
        tasks=tasks,
        components=components,
        rewards=sum_rewards(run.config, tasks, components),
    )


def join_conditioning(shards: list[RolloutShard]) -> tuple[dict[str, Tensor], Tensor]:
    """Join the shards' conditioning tables, and shift each sample's row accordingly."""
    names = shards[0].conditioning.keys()
    tables = {name: torch.cat([shard.conditioning[name] for shard in shards]) for name in names}
    rows, offset = [], 0
    for shard in shards:
        rows.append(shard.prompt_index + offset)
        offset += len(shard.prompts)
    return tables, torch.cat(rows)


def draw_minibatches(settings: TrainSettings, samples: int, run_seed: int, iteration: int) -> Iterator[Tensor]:
    """Give the samples (int64 [M]) of each optimizer step: every inner epoch in an order of its own."""
    for epoch in range(settings.inner_epochs):
        generator = torch.Generator().manual_seed(derive_seed(run_seed, "minibatches", iteration, epoch))
        order = torch.randperm(samples, generator=generator)
        size = settings.minibatch_size or samples
        yield from (order[first : first + size] for first in range(0, samples, size))


def accumulate_gradient(
    model: ConsistencyModel,
    rollout: Rollout,
    transitions: Transitions,
    advantages: Tensor,
    settings: TrainSettings,
    *,
    micro_batch_size: int,
) -> UpdateMetrics:
    """Add the gradient of the mean loss over the transitions, a micro-batch at a time.

    `advantages`: float32, one a sample of the rollout. The result depends on the micro-batch size by
    rounding alone: each part counts by its number of transitions.
    """
    record = UpdateMetrics()
    for first in range(0, len(transitions), micro_batch_size):
        rows = slice(first, min(first + micro_batch_size, len(transitions)))
        share = (rows.stop - first) / len(transitions)
        states, actions, steps, samples, old_log_probs = (
            tensor[rows].to(model.device)
            for tensor in (
                transitions.states_NCHW,
                transitions.actions_NCHW,
                transitions.steps_N,
                transitions.samples_N,
                transitions.log_probs_N,
            )
        )
        picked = rollout.conditioning_index[samples.cpu()]
        conditioning = {name: table[picked].to(model.device) for name, table in rollout.conditioning.items()}
        timesteps = rollout.schedule.timesteps.to(model.device)[steps]
        guidance = rollout.manifest.schedule.guidance_scale

        output = model.predict(states, timesteps, conditioning, guidance)
        gaussian = transition(rollout.schedule, output, states, steps)
        # As in sampling: the mean is rounded to the model's dtype before the density is taken.
        mean = gaussian.mean.to(states.dtype)
        _, log_probs = take_action(mean, gaussian.std, action=actions, reduction=rollout.manifest.reduction)
        result = ppo_clip(log_probs, old_log_probs, advantages.to(model.device)[samples], settings.clip_range)
        loss = result.loss
        if settings.kl_weight:
            with torch.no_grad(), base_model(model):
                base_output = model.predict(states, timesteps, conditioning, guidance)
            base_mean = transition(rollout.schedule, base_output, states, steps).mean
            kl = gaussian_kl(gaussian.mean, base_mean, gaussian.std, rollout.manifest.reduction).mean()
            loss = loss + settings.kl_weight * kl
            record.kl_to_base += share * kl.item()
        (share * loss).backward()  # type: ignore[no-untyped-call]

        record.loss += share * loss.item()
        record.ratio += share * result.ratio.item()
        record.approx_kl += share * result.approx_kl.item()
        record.clip_fraction += share * result.clip_fraction.item()
        drift = result.ratio_drift.item()
        # max() would drop NaN.
        record.ratio_drift = drift if math.isnan(drift) else max(record.ratio_drift, drift)
    return record


def check_ratio(drift: float, dtype: str, where: str) -> None:
    """Raise `TrainingError` where replaying stored transitions gives other probabilities than drawing them."""
    if math.isnan(drift):
        raise TrainingError(
            f"rollout {where}: the model gives NaN for stored transitions in {dtype}; use --dtype bfloat16 or "
            "float32, or a smaller train.learning_rate"
        )
    tolerance = RATIO_TOLERANCE[dtype]
    if not drift <= 10 * tolerance:
        raise TrainingError(
            f"rollout {where}: before any update the probability ratio is {drift:.2e} away from 1 (rounding in "
            f"{dtype} gives at most {tolerance:.0e}); the model that samples is not the one that trains: another "
            "adapter, dropout, attention kernel, or numerics of another device (then sample and train on the same "
            "kind, or use --off-policy)"
        )


def learning_rate(settings: TrainSettings, iteration: int) -> float:
    """Give the rate of an iteration: linear decay to 0 over `lr_decay_iterations`, in steps; 0 is no decay."""
    if not settings.lr_decay_iterations:
        return settings.learning_rate
    step = iteration // settings.lr_decay_every * settings.lr_decay_every
    return settings.learning_rate * max(0.0, 1 - step / settings.lr_decay_iterations)


def average(records: list[UpdateMetrics]) -> dict[str, float]:
    """Average the metrics of an iteration's optimizer steps."""
    return {
        name: sum(getattr(record, name) for record in records) / len(records)
        for name in ("loss", "ratio", "approx_kl", "clip_fraction", "kl_to_base", "grad_norm")
    }
