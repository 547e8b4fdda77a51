"""Sample, score and train, again and again: no algorithm of its own, the phases' functions in turn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch

from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.phases.costs import BACKWARD_FORWARDS
from rlcm_cli.phases.evaluate import evaluate, plan_evaluation
from rlcm_cli.phases.events import CostEstimated, Event, HackingFound, IterationTrained
from rlcm_cli.phases.policy import ensure_start
from rlcm_cli.phases.run import Run
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.schedules import training_schedule
from rlcm_cli.phases.score import Scorer, score
from rlcm_cli.phases.train import train
from rlcm_cli.phases.watch import best_checkpoints, find_hacking, trained_progress
from rlcm_cli.store.checkpoint import latest_checkpoint
from rlcm_cli.store.run import prune_checkpoints, prune_rollouts, read_metrics


def loop(run: Run, model: DiffusionModel, scorers: Mapping[str, Scorer]) -> Iterator[Event]:
    """Run the iterations that are missing, and draw the fixed images with the first and the last policy.

    Where a watched reward falls while the trained one rises, warn, or stop if the configuration says so; the
    best checkpoint by each watched reward is never pruned.
    """
    run.config.require_actions()
    layout, runtime, watch = run.layout, run.config.runtime, run.config.watch
    ensure_start(run, model)
    first_iteration = latest_checkpoint(layout)
    if first_iteration < runtime.iterations:
        yield estimate_cost(run, model, runtime.iterations - first_iteration)
    if 0 in layout.checkpoints():
        yield from evaluate(run, model, scorers, 0)
    # Metrics are published before their checkpoint, so that one without it is of an iteration yet to be done.
    history = [row for row in read_metrics(layout) if row["iteration"] < first_iteration]
    alarms: dict[str, str] = {}
    while True:
        found = find_hacking(history, watch, trained_progress(history, run.config))
        for name in [name for name in found if name not in alarms]:
            yield HackingFound(latest_checkpoint(layout), name, found[name], stops=watch.on_hacking == "stop")
        alarms = found
        if latest_checkpoint(layout) >= runtime.iterations or (alarms and watch.on_hacking == "stop"):
            break
        yield from sample(run, model)
        yield from score(run, scorers, device=model.device)
        for event in train(run, model, scorers):
            yield event
            if isinstance(event, IterationTrained):
                history.append(dict(event.metrics))
        if runtime.keep_rollouts is not None:
            prune_rollouts(layout, runtime.keep_rollouts, latest_checkpoint(layout))
        if runtime.keep_checkpoints is not None:
            prune_checkpoints(layout, runtime.keep_checkpoints, best_checkpoints(history, watch).values())
    last = latest_checkpoint(layout)
    best = best_checkpoints(history, watch).values() if alarms else ()
    for number in sorted({last, *best} & {*layout.checkpoints()} - {0}):
        yield from evaluate(run, model, scorers, number)


@torch.no_grad()
def estimate_cost(run: Run, model: DiffusionModel, iterations: int) -> CostEstimated:
    """Estimate time and disk of some iterations, and of two evaluations, from one timed model call."""
    config = run.config
    steps, samples, batch = config.sample.steps, config.sample.samples, config.sample.batch_size
    latents = torch.zeros(batch, *model.latent_shape, device=model.device, dtype=model.dtype)
    timesteps = torch.full((batch,), 999, device=model.device)
    conditioning = {
        name: table.to(model.device).expand(batch, *table.shape[1:])
        for name, table in model.encode_prompts([""]).items()
    }
    seconds_a_call = []
    for _ in range(3):
        started = time.perf_counter()
        model.predict(latents, timesteps, conditioning, config.sample.guidance_scale)
        model.decode(latents[:1])  # waits for the device
        seconds_a_call.append(time.perf_counter() - started)
    forward = min(seconds_a_call) / batch
    settings, actions = config.train, training_schedule(config, model).actions
    passes = 1 + BACKWARD_FORWARDS + bool(settings.kl_weight)
    trained = actions * settings.timestep_fraction * settings.inner_epochs * passes
    if config.last_step.mode == "backprop":
        trained += settings.inner_epochs * (1 + BACKWARD_FORWARDS)
    drawn = len(plan_evaluation(config)) * 2
    forwards = iterations * samples * (steps + trained) + drawn * steps

    latent_bytes = (actions + 1) * torch.zeros(model.latent_shape, dtype=model.dtype).nbytes
    sample_bytes = latent_bytes + 3 * model.image_size**2
    kept = iterations if config.runtime.keep_rollouts is None else config.runtime.keep_rollouts
    copies = 3 + (settings.ema_decay is not None)  # the weights and Adam's two moments
    trained_bytes = copies * 4 * sum(p.numel() for p in model.unet.parameters() if p.requires_grad)
    checkpoints = config.runtime.keep_checkpoints or iterations
    disk = min(kept, iterations) * samples * sample_bytes + min(checkpoints, iterations) * trained_bytes
    return CostEstimated(forwards * forward, disk + drawn * 3 * model.image_size**2, iterations)
