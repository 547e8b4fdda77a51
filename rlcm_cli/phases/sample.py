"""Phase 1: draw an iteration's images with the policy of its checkpoint, and store their trajectories."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.gaussian import Reduction
from rlcm_cli.core.noise import draw_noise
from rlcm_cli.core.schedule import Schedule, sample_trajectories
from rlcm_cli.core.trajectory import Trajectories, join_trajectories
from rlcm_cli.errors import NotFiniteError
from rlcm_cli.events import Advanced, Event, PhaseSkipped, PhaseStarted, Warned
from rlcm_cli.learning.rollout import sample_seed
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import folded_lora
from rlcm_cli.objectives import Need, find_objective
from rlcm_cli.processes.worker import Worker
from rlcm_cli.prompts import draw_prompts
from rlcm_cli.runs.inputs import TaskPrompts
from rlcm_cli.runs.policy import ensure_start, load_drawing_policy
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import record_schedule, restore_schedule, training_schedule
from rlcm_cli.store.background import writing_behind
from rlcm_cli.store.checkpoint import TrainerState, latest_checkpoint
from rlcm_cli.store.manifest import (
    PolicyIdentity,
    RolloutManifest,
    publish_manifest,
    split_groups,
    split_shares,
)
from rlcm_cli.store.rollouts import RolloutShard, missing_shards, publish_shard
from rlcm_cli.store.timings import timing

REDUCTION: Reduction = "mean"
FEWEST_OF_USUAL = 4
"""Below a fourth of the steps that a model was made for, images are blurred."""


def sample(
    run: Run,
    model: LatentModel,
    worker: Worker = Worker(),
    *,
    iteration: int | None = None,
) -> Iterator[Event]:
    """Draw the shards of this worker that an iteration lacks: by default the one that is trained next.

    With `sample.staleness` the one after it may be drawn too, while the other trains. Raises `MissingFileError` where
    the checkpoint that draws the iteration is not there.
    """
    run.config.require_actions()
    ensure_start(run, model)
    if iteration is None:
        iteration = latest_checkpoint(run.layout)
    state = load_drawing_policy(run, model, run.config.sample.drawing_checkpoint(iteration))
    planned = plan_rollout(run.config, run.prompts, model, state, iteration)
    manifest = publish_manifest(run.layout.manifest(iteration), planned)
    mine = [number for number in missing_shards(run.layout, manifest) if worker.takes(number)]
    if not mine:
        yield PhaseSkipped("sample", iteration, "all shards are there")
        return
    if iteration == 0 and 0 in mine:
        yield from tell_few_steps(model, run.config.model.name, run.config.sample.steps)
        yield from tell_double_guidance(model, manifest.schedule.guidance_scale)
        yield from tell_blur(model, run.config)
    total = sum(manifest.shards[number][1] - manifest.shards[number][0] for number in mine)
    yield PhaseStarted("sample", iteration, total, "images")
    model.read_prompts([manifest.prompt_of(sample) for number in mine for sample in range(*manifest.shards[number])])
    with writing_behind() as writer:
        for number in mine:
            batches = []
            with timing(run.layout, iteration, "sample", number):
                for batch in draw_shard(manifest, model, number):
                    batches.append(batch)
                    yield Advanced(len(batch.images))
                shard = assemble_shard(manifest, model, number, batches)
                writer.submit(functools.partial(publish_shard, run.layout, manifest, number, shard))
                if number == mine[-1]:
                    writer.wait()


def tell_few_steps(model: LatentModel, name: str, steps: int) -> Iterator[Event]:
    """Yield a warning where a model that was made for many steps is asked for few; `name` is the model's."""
    usual = None if model.recommended is None else model.recommended.steps
    if usual is not None and FEWEST_OF_USUAL * steps < usual:
        yield Warned(
            f"{name} is made for {usual} steps of the sampler {model.sampler.kind}, and {steps} give blurred images; "
            f"use --steps {usual}, or a model or LoRA that few steps were distilled into (docs/models.md)"
        )


def tell_double_guidance(model: LatentModel, guidance_scale: float) -> Iterator[Event]:
    """Yield a warning where weights that guidance was distilled into are guided by two predictions, and strongly."""
    known = model.recommended
    doubled = guidance_scale > 2 and model.count_predictions(guidance_scale) > 1
    if doubled and known is not None and known.guidance_scale <= 1:
        yield Warned(
            f"sample.guidance_scale is {guidance_scale:g}, and the sampler {model.sampler.kind} "
            "draws with weights that few steps were distilled into, guidance mostly among them: more than 2 is too "
            "much for most, and takes twice the model calls; 1 is none"
        )


def tell_blur(model: LatentModel, config: Config) -> Iterator[Event]:
    """Yield a warning where an objective that denoises images is to train a model that was distilled to few steps."""
    if Need.FINAL_LATENTS in find_objective(config).needs and model.is_distilled:
        yield Warned(
            f"objective.kind {config.objective.kind} learns by denoising, and {config.model.name} was distilled to "
            "few steps: it may be drawn towards the mean of all images that fit a noised one, which is blurred "
            "(not so in 40 iterations of the embedded model); watch the images, or use an objective of "
            "trajectories such as ppo, grpo or pso"
        )


def plan_rollout(
    config: Config,
    task_prompts: Mapping[str, TaskPrompts],
    model: LatentModel,
    policy: TrainerState,
    iteration: int,
) -> RolloutManifest:
    """Make the plan of an iteration that a policy draws: a pure function of its arguments."""
    settings = config.sample
    tasks = config.joint_tasks()
    counts = split_shares(settings.samples // settings.group_size, [task.share for task in tasks.values()])
    prompts: list[str] = []
    for task, count in zip(tasks, counts, strict=True):
        prompts += draw_prompts(task_prompts[task].training, config.seed, iteration * count, count)
    return RolloutManifest(
        run=policy.run,
        iteration=iteration,
        tasks=tuple(tasks),
        run_seed=config.seed,
        model_digest=model.digest,
        dtype=config.model.dtype,
        policy=PolicyIdentity(kind=model.sampler.kind, checkpoint=policy.number, digest=policy.policy_digest),
        schedule=record_schedule(training_schedule(config, model, iteration), settings.guidance_scale),
        reduction=REDUCTION,
        prompts=tuple(prompts),
        group_tasks=tuple(index for index, count in enumerate(counts) for _ in range(count)),
        group_size=settings.group_size,
        shards=split_groups(settings.samples, settings.group_size, settings.shards),
        batch_size=settings.batch_size,
        final_latents=Need.FINAL_LATENTS in find_objective(config).needs,
    )


@dataclass(frozen=True)
class Drawn:
    """One batch of drawn samples."""

    trajectories: Trajectories
    images: Tensor
    """uint8 [B, 3, H, W]."""
    final_latents: Tensor
    """What was decoded, [B, C, h, w] in the model's dtype."""


@torch.no_grad()
def draw_batch(
    model: LatentModel,
    schedule: Schedule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float,
    reduction: Reduction,
) -> Drawn:
    """Draw one image a (prompt, seed), recording its trajectory on the CPU.

    Raises `NotFiniteError` where the model gives NaN or infinity: such an image is neither shown nor scored.
    """
    noise = draw_noise(seeds, schedule.actions + 1, model.latent_shape).to(model.device)
    conditioning = _to_device(model.encode_prompts(prompts), model)
    with folded_lora(model):
        trajectories, denoised = sample_trajectories(
            lambda latents, timesteps: model.predict(latents, timesteps, conditioning, guidance_scale),
            schedule,
            noise,
            reduction,
            model.dtype,
        )
    # What is copied to the CPU waits for the device: all of it last.
    try:
        images = model.decode(denoised)
    except NotFiniteError as error:
        row, *others = error.rows
        named = f"prompt '{prompts[row]}', seed {seeds[row]}"
        also = f" and {len(others)} more of {len(prompts)} images" if others else ""
        raise NotFiniteError(f"{named}{also}: {error}", error.rows) from None
    on_cpu = dataclasses.replace(
        trajectories, latents_BSCHW=trajectories.latents_BSCHW.cpu(), log_probs_BA=trajectories.log_probs_BA.cpu()
    )
    return Drawn(on_cpu, images, denoised.cpu())


def tell_cut_prompts(model: LatentModel, prompts: Iterable[str]) -> Iterator[Event]:
    """Yield a warning where the text encoder does not read some of the prompts to their end."""
    distinct = list(dict.fromkeys(prompts))
    cut, longest = model.count_cut_prompts(distinct)
    if cut:
        verb = "is" if cut == 1 else "are"
        yield Warned(
            f"{cut} of {len(distinct):,} prompts {verb} longer than the {longest} tokens that the text encoder "
            f"reads, and {verb} cut there"
        )


def draw_shard(manifest: RolloutManifest, model: LatentModel, number: int) -> Iterator[Drawn]:
    """Draw the batches of a shard, in the plan's split."""
    schedule = restore_schedule(manifest.schedule)
    start, stop = manifest.shards[number]
    for first in range(start, stop, manifest.batch_size):
        samples = range(first, min(first + manifest.batch_size, stop))
        yield draw_batch(
            model,
            schedule,
            [manifest.prompt_of(sample) for sample in samples],
            [sample_seed(manifest, sample) for sample in samples],
            guidance_scale=manifest.schedule.guidance_scale,
            reduction=manifest.reduction,
        )


def assemble_shard(
    manifest: RolloutManifest, model: LatentModel, number: int, batches: Sequence[Drawn]
) -> RolloutShard:
    """Join the batches of a shard with the identity and the conditioning of its samples."""
    samples = range(*manifest.shards[number])
    prompts = [manifest.prompt_of(sample) for sample in samples]
    unique = tuple(dict.fromkeys(prompts))
    return RolloutShard(
        trajectories=join_trajectories([batch.trajectories for batch in batches]),
        images=torch.cat([batch.images for batch in batches]),
        sample_index=torch.tensor(samples),
        seed=torch.tensor([sample_seed(manifest, sample) for sample in samples]),
        prompts=unique,
        prompt_index=torch.tensor([unique.index(prompt) for prompt in prompts]),
        conditioning=model.encode_prompts(unique),
        final_latents=torch.cat([batch.final_latents for batch in batches]) if manifest.final_latents else None,
    )


def _to_device(conditioning: Mapping[str, Tensor], model: LatentModel) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in conditioning.items()}
