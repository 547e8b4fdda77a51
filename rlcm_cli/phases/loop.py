"""Sample, score and train, again and again: no algorithm here, only the phases' functions in turn."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rlcm_cli.config import Config
from rlcm_cli.events import CostEstimated, Event, Warned
from rlcm_cli.learning.costs import count_training_calls
from rlcm_cli.learning.log_probs import refresh_passes
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.evaluate import evaluate, plan_evaluation
from rlcm_cli.phases.iterations import run_iterations
from rlcm_cli.phases.sample import sample, tell_cut_prompts
from rlcm_cli.phases.score import Scorer, load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.processes.job import Processes
from rlcm_cli.runs.policy import choose_sharding, ensure_start, start_run
from rlcm_cli.runs.run import Run, check_run
from rlcm_cli.runs.schedules import training_schedule
from rlcm_cli.store.checkpoint import latest_checkpoint
from rlcm_cli.store.score_cache import ScoreCache


@dataclass(frozen=True)
class StartedLoop:
    """A loop that is ready to run."""

    run: Run
    device: str
    """What does the work, as shown."""
    events: Iterator[Event]
    """The work itself, done as they are taken."""
    model: LatentModel | None = None
    """As loaded; None where only others load it."""


def start_loop(
    root: Path,
    config: Config,
    processes: Processes,
    *,
    cache: ScoreCache | None = None,
    allow_changed: bool = False,
    fit: Callable[[Run, LatentModel], Run] = lambda run, model: run,
) -> StartedLoop:
    """Load rewards and model, and open or create the run.

    `cache` and `allow_changed` are those of `load_scorers`, `fit` is that of `start_run`; raises as they do.
    """
    choose_sharding(config, processes)  # rewards may take minutes to load
    scorers = load_scorers(check_run(root, config), cache=cache, allow_changed=allow_changed)
    run, model = start_run(root, config, fit, processes)
    return StartedLoop(run, str(model.device), loop(run, model, scorers, processes), model)


def loop(
    run: Run,
    model: LatentModel,
    scorers: Mapping[str, Scorer],
    processes: Processes = Processes(),
) -> Iterator[Event]:
    """Run the iterations that are missing, and draw the fixed images with the first and the last policy.

    Monitors and prunes as `run_iterations` says. Of several processes, all run this and divide the work of each phase;
    only the leader removes files.
    """
    run.config.require_actions()
    ensure_start(run, model)
    left = run.config.runtime.iterations - latest_checkpoint(run.layout)
    if left > 0:
        yield from tell_cut_prompts(model, run.all_prompts())
        estimate = estimate_cost(run, model, left, processes)
        yield estimate
        yield from warn_of_space(run.layout.root, estimate)

    def iterate() -> Iterator[Event]:
        yield from sample(run, model, processes.divide())
        processes.wait()
        # Not what is drawn ahead, perhaps in part, where a run of another executor resumes here.
        iteration = latest_checkpoint(run.layout)
        yield from score(run, scorers, processes.divide(), iterations=[iteration], device=model.device)
        processes.wait()
        yield from train(run, model, scorers, processes)

    yield from run_iterations(
        run, iterate, lambda checkpoint: evaluate(run, model, scorers, checkpoint, processes), prunes=processes.leads
    )


def warn_of_space(root: Path, estimate: CostEstimated) -> Iterator[Warned]:
    """Warn where the disk of a run has less space than its iterations are estimated to take."""
    free = shutil.disk_usage(root).free
    if free < estimate.disk_bytes:
        yield Warned(
            f"{root}: the disk has {free / 1e6:,.0f} MB left, and the run is estimated to take "
            f"{estimate.disk_bytes / 1e6:,.0f} MB; free some space, or bound the run with --keep-rollouts and "
            "--keep-checkpoints"
        )


@torch.no_grad()
def estimate_cost(
    run: Run,
    model: LatentModel,
    iterations: int,
    processes: Processes = Processes(),
) -> CostEstimated:
    """Estimate time and disk of some iterations, and of two evaluations, from one timed model call."""
    config = run.config
    steps, samples, batch = config.sample.steps, config.sample.samples, config.sample.batch_size
    latents = torch.zeros(batch, *model.latent_shape, device=model.device, dtype=model.dtype)
    schedule = training_schedule(config, model)
    timesteps = schedule.timesteps[:1].expand(batch).to(model.device)
    texts = model.encode_prompts(["", max(run.all_prompts(), key=len)])  # in one call, which loads encoders once
    conditioning = {name: table[:1].to(model.device).expand(batch, *table.shape[1:]) for name, table in texts.items()}
    seconds_a_call = []
    for _ in range(3):
        started = time.perf_counter()
        model.predict(latents, timesteps, conditioning, config.sample.guidance_scale)
        model.decode(latents[:1])  # waits for the device
        seconds_a_call.append(time.perf_counter() - started)
    forward = min(seconds_a_call) / batch
    actions = schedule.actions
    trained = count_training_calls(config, actions, refreshes=refresh_passes(config))
    between = iterations // config.evaluate.every if config.evaluate.every else 0
    drawn = len(plan_evaluation(config, run.prompts)) * (2 + between)
    drawing = min(processes.size, config.sample.shards)  # processes; all of them train and evaluate
    forwards = iterations * (samples * steps / drawing + trained / processes.size) + drawn * steps / processes.size
    text_bytes = sum(table[1:].nbytes for table in texts.values())
    disk = estimate_disk(run, model, iterations, actions + 1, text_bytes) + drawn * 3 * math.prod(model.image_size)
    return CostEstimated(forwards * forward, disk, iterations)


def estimate_disk(run: Run, model: LatentModel, iterations: int, states: int, text_bytes: int) -> int:
    """Estimate the bytes of the rollouts and checkpoints of some iterations, as far as they are kept.

    `states`: of a trajectory. `text_bytes`: what a prompt is conditioned on, which each shard holds once.
    """
    config, settings = run.config, run.config.sample
    latent_bytes: int = torch.zeros(model.latent_shape, dtype=model.dtype).nbytes
    sample_bytes = states * latent_bytes + 3 * math.prod(model.image_size)
    prompts = sum(len(own.training) for own in run.prompts.values())
    texts = min(settings.samples // settings.group_size, prompts * settings.shards)
    copies = 3 + (config.train.ema_decay is not None)  # the weights and Adam's two moments
    trained_bytes: int = copies * 4 * sum(p.numel() for p in model.denoiser.parameters() if p.requires_grad)
    rollouts, checkpoints = (
        iterations if kept is None else min(kept, iterations)
        for kept in (config.runtime.keep_rollouts, config.kept_checkpoints)
    )
    return rollouts * (settings.samples * sample_bytes + texts * text_bytes) + checkpoints * trained_bytes
