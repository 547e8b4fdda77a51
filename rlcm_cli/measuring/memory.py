"""A memory budget: what is measured of a configuration, and the runtime settings that make it fit.

On CUDA the work itself is tried under a cap of the budget. Elsewhere the tensors that it makes are counted, of
training at one and two transitions, from which the line is drawn on: activations grow by the same bytes each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch

from rlcm_cli.config import Config, parse_size
from rlcm_cli.core.allocations import PeakAllocations, distinct_bytes
from rlcm_cli.core.device import release_memory
from rlcm_cli.core.throughput import largest_that_fits
from rlcm_cli.errors import ConfigError
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.memory import cap_memory, checkpoint_activations, model_bytes, slice_decoding
from rlcm_cli.models.offloading import is_offloaded, offload_parts
from rlcm_cli.phases.sample import draw_batch
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import training_schedule
from rlcm_cli.wording import format_gb

LARGEST_MICRO_BATCH = 64
"""From here on throughput no longer grows, even of the embedded model."""


@dataclass(frozen=True)
class TrainingFit:
    """The micro-batch that a budget has room for."""

    micro_batch_size: int
    gradient_checkpointing: bool
    peak_bytes: int
    """Of an optimizer step with it."""
    measured: bool
    """On the device itself, not counted."""


@dataclass(frozen=True)
class SamplingFit:
    """How the batches of a plan are drawn within a budget."""

    batch_size: int
    decode_slicing: bool
    """Images of a batch are decoded one after the other."""
    offload: bool
    """The denoiser and the autoencoder are on the device only while they work."""
    peak_bytes: int


@dataclass(frozen=True)
class MemoryFit:
    """What a budget chose for the phases of a run; None for one that was not asked for."""

    sampling: SamplingFit | None = None
    training: TrainingFit | None = None


def fit_run(run: Run, model: LatentModel, phases: Collection[Literal["sample", "train"]]) -> tuple[Run, MemoryFit]:
    """Pick the runtime settings that fit some phases of a run into its memory budget, and prepare the model for them.

    The model is one of `load_policy_model`. Returns the run with the settings, and what was picked; of a run without a
    budget the run itself. The batches of sampling are part of the plan and stay as they are. Raises `ConfigError`
    where they do not fit, or not even one transition does.
    """
    runtime = run.config.runtime
    if runtime.memory_budget is None:
        return run, MemoryFit()
    budget = parse_size(runtime.memory_budget)
    cap_memory(model.device, budget)
    sampling = fit_sampling(run.config, model, budget) if "sample" in phases else None
    if "train" not in phases:
        return run, MemoryFit(sampling)
    training = fit_training(run.config, model, budget)
    picked = {
        "micro_batch_size": training.micro_batch_size,
        "gradient_checkpointing": training.gradient_checkpointing,
    }
    config = run.config.model_copy(update={"runtime": runtime.model_copy(update=picked)})
    return Run(run.layout, config), MemoryFit(sampling, training)


def fit_sampling(config: Config, model: LatentModel, budget: int) -> SamplingFit:
    """Find out whether images must be decoded one at a time, and parts take turns, so that a batch of sampling fits.

    Leaves the model drawing so. Raises `ConfigError` where even then it does not fit.
    """
    batch = config.sample.batch_size
    for sliced, offloaded in list_ways(config, model):
        slice_decoding(model, sliced)
        if offloaded and not is_offloaded(model):
            offload_parts(model)
        peak = sampling_peak(config, model, batch)
        if peak is not None and peak <= budget:
            return SamplingFit(batch, sliced, is_offloaded(model), peak)
    fitting = largest_that_fits(
        lambda size: (found := sampling_peak(config, model, size)) is not None and found <= budget, batch - 1
    )
    if not fitting:
        raise ConfigError(
            f"runtime.memory_budget {format_gb(budget)}: drawing one image at a time takes {_need(model, config)}; "
            f"give at least that{advise_smaller(config)}"
        )
    raise ConfigError(
        f"runtime.memory_budget {format_gb(budget)}: drawing {batch} images at once does not fit, {fitting} do; "
        f"start the run with --set sample.batch_size={fitting} (it is part of the plan), or give a larger budget"
    )


def list_ways(config: Config, model: LatentModel) -> list[tuple[bool, bool]]:
    """Return whether to slice decoding and to let the parts take turns, the fastest way first."""
    ways = [(False, False), (True, False)]
    stays = model.device.type == "cpu" or model.quantized == "8bit" or config.train.parameters == "full"
    return ways if stays else [*ways, (False, True), (True, True)]


def sampling_peak(config: Config, model: LatentModel, batch: int) -> int | None:
    """Return the peak in bytes of drawing and decoding a batch; None where the device has no room for it."""
    schedule, guidance = training_schedule(shorten(config, model), model), config.sample.guidance_scale
    model.encode_prompts([""])  # one prompt a call, and kept: no batch makes it larger
    return measure_peak(
        model,
        lambda: draw_batch(
            model, schedule, [""] * batch, list(range(batch)), guidance_scale=guidance, reduction="mean"
        ),
    )


def shorten(config: Config, model: LatentModel) -> Config:
    """Return the configuration with two model calls: the peak is that of one, and of the decoder.

    With all of them where a sampler does not take two, or draws its noise at later ones.
    """
    short = config.model_copy(update={"sample": config.sample.model_copy(update={"steps": 2})})
    try:
        training_schedule(short, model)
    except ConfigError:
        return config
    return short


def fit_training(config: Config, model: LatentModel, budget: int) -> TrainingFit:
    """Pick the largest micro-batch that fits, with activations computed twice only where else not even one does.

    Leaves the model computing them so. Raises `ConfigError` where nothing fits.
    """
    runtime = config.runtime
    probe = Probe(config, model, samples=2, batch_size=1, steps=shorten(config, model).sample.steps)
    with probe.undone():
        for checkpointing in (False, True) if not runtime.gradient_checkpointing else (True,):
            checkpoint_activations(model, checkpointing)
            peak = training_peaks(probe)

            def fits(size: int, peak: Callable[[int], int | None] = peak) -> bool:
                found = peak(size)
                return found is not None and found <= budget

            size = largest_that_fits(fits, LARGEST_MICRO_BATCH)
            if size:
                return TrainingFit(size, checkpointing, peak(size) or 0, model.device.type == "cuda")
        cap_memory(model.device, None)
        need = training_peaks(probe)(1)
        cap_memory(model.device, budget)
    raise ConfigError(
        f"runtime.memory_budget {format_gb(budget)}: training on one transition at a time, activations computed "
        f"twice, takes {'more than this device has' if need is None else format_gb(need)}; give at least that"
        f"{advise_smaller(config)}"
    )


def advise_smaller(config: Config) -> str:
    """Say what else would make a model smaller; nothing where all of it is done."""
    ways = [] if config.model.dtype != "float32" else ["--dtype bfloat16"]
    if config.model.quantize != "4bit" and config.train.parameters == "lora":
        ways.append("--quantize 4bit")
    return f", or use {' and '.join(ways)}" if ways else ""


def training_peaks(probe: Probe) -> Callable[[int], int | None]:
    """Return the function from a micro-batch size to the peak in bytes of an optimizer step; None: no room for it."""

    @functools.cache
    def measured(size: int) -> int | None:
        return measure_peak(probe.model, lambda: probe.take_step(size))

    if probe.model.device.type == "cuda":
        return measured
    probe.start_optimizer()
    moments = distinct_bytes(probe.optimizer_tensors())
    one, two = (moments + (measured(size) or 0) for size in (1, 2))
    return lambda size: one + (size - 1) * (two - one)


def measure_peak(model: LatentModel, work: Callable[[], object]) -> int | None:
    """Do some work and return the largest number of bytes that tensors took meanwhile, the model's among them.

    On CUDA as its allocator knows it, and None where memory ended; elsewhere as counted by `PeakAllocations`.
    """
    if model.device.type != "cuda":
        with PeakAllocations() as counted:
            work()
        return model_bytes(model) + int(counted.peak)
    try:
        return _cuda_peak(model.device, work)
    except torch.OutOfMemoryError:
        pass
    # Out here the error no longer holds the frames whose tensors fill the device.
    release_memory(model.device)
    return None


def _cuda_peak(device: torch.device, work: Callable[[], object]) -> int:
    release_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _need(model: LatentModel, config: Config) -> str:
    cap_memory(model.device, None)
    peak = sampling_peak(config, model, 1)
    return "more than this device has" if peak is None else format_gb(peak)
