"""How fast a model is sampled, decoded, scored and trained on a device, by the phases' own functions.

Batch sizes are tried in turn, each measured after a warm-up, for a stated time at least, the device waited for.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.device import allow_tf32, release_memory
from rlcm_cli.core.schedule import Schedule
from rlcm_cli.core.throughput import (
    UnitCosts,
    Work,
    choose_batch,
    largest_that_fits,
    project_seconds,
    share_of_peak,
    sweep_batches,
)
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning.costs import count_work
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.measuring.flops import count_flops
from rlcm_cli.measuring.memory import TrainingFit, fit_training, training_peaks
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.memory import cap_memory
from rlcm_cli.objectives import find_objective
from rlcm_cli.phases.sample import REDUCTION, draw_batch
from rlcm_cli.rewards import Reward
from rlcm_cli.runs.policy import attach
from rlcm_cli.runs.schedules import training_schedule
from rlcm_cli.wording import count

REPEATS = 3
"""Fewest times that a piece of work is measured."""
REWARD_BATCH = 64
MOST_PROBED = 512
"""Largest micro-batch that is tried for memory only."""
MATRIX_SIZES = {"cuda": (4096, 8192, 16384)}
SMALL_MATRICES = (1024, 2048)


@dataclass(frozen=True)
class RepeatedTiming:
    """Seconds of one piece of work, measured several times."""

    median: float
    fastest: float
    slowest: float
    repeats: int


@dataclass(frozen=True)
class Measured:
    """One kind of work at one batch size."""

    batch: int
    timing: RepeatedTiming
    """Of the whole batch."""
    rate: float
    """Units a second: images, or transitions."""
    peak_share: float | None
    """FLOPs as executed, over the device's measured matrix peak; None of rewards."""
    peak_bytes: int
    """Peak of tensors on CUDA since the work began; elsewhere the process's resident high-water mark so far."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of one unit, a multiplication and an addition counted as two."""

    call: int
    """A model call for one image, guidance included."""
    decode: int
    transition: int


@dataclass(frozen=True)
class Projection:
    """What a task would take at the measured rates."""

    task: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What was measured."""

    device: str
    dtype: str
    image_size: tuple[int, int]
    steps: int
    matrix_peak: float
    """FLOP/s, by `measure_matrix_peak`."""
    flops: Flops
    sampling: list[Measured]
    """H model calls, without decoding."""
    decoding: list[Measured]
    training: list[Measured]
    """Forward, backward and optimizer step on one micro-batch."""
    reward: Measured
    ratio_drift: float
    """Largest |ratio − 1| before any update, when replayed in another batch than drawn."""
    clip_range: float | None
    """Of the objective; None where it cuts no ratio."""
    largest_micro_batch: int | None
    """That memory has room for; None where it was not looked for, without a cap on a device that has none."""
    fit: TrainingFit | None
    """With a memory budget."""
    projections: list[Projection]
    suggestions: dict[str, int | bool]
    """Settings by their dotted names."""


def bench(
    config: Config,
    model: LatentModel,
    reward: Reward,
    *,
    batches: Sequence[int] | None,
    tasks: Mapping[str, Config],
    budget: int | None,
    seconds: float,
    tell: Callable[[str], None],
) -> Bench:
    """Measure a model with the settings of a configuration; it is of no use for anything else afterwards.

    Args:
        config: Of the sampler, the adapter and the objective that are measured. Where the model is drawn by another
            sampler, that one's defaults are.
        model: As loaded; what is trained is attached here.
        reward: Loaded, no set-level one; it scores drawn images.
        batches: Batch sizes; None for 1, 2, 4 … until memory ends or the rate stops growing.
        tasks: Configurations whose whole runs are projected, by the names to show.
        budget: Bytes for tensors: a cap on CUDA, elsewhere a bound on the suggested micro-batch.
        seconds: Each measurement lasts at least as long.
        tell: Is told what comes next.

    Raises `ConfigError` where not even one image or transition fits.
    """
    allow_tf32(config.runtime.tf32)
    config = _fit_sampler(config, model)
    attach(config, model)
    schedule = training_schedule(config, model)
    model.encode_prompts([""])  # kept: no measurement has the text encoder in it
    tell("the device's matrix peak")
    bench = _Bencher(config, model, schedule, batches, seconds, measure_matrix_peak(model.device, model.dtype), tell)
    cap_memory(model.device, budget)
    fit = None
    if budget is not None:
        tell("the memory of training")
        fit = fit_training(config, model, budget)
    tell("the precision of a replay")
    probe = Probe(config, model, samples=4, batch_size=2, steps=config.sample.steps)
    drift = probe.ratio_drift(3)
    tell("floating-point operations")
    flops = bench.count_flops(probe)
    sampling, decoding = bench.measure_sampling(flops)
    training = bench.measure_training(probe, flops)
    scored = bench.measure_reward(reward)
    largest = _largest_micro_batch(probe, fit, tell)

    drawn = choose_batch({row.batch: row.rate for row in sampling})
    trained = choose_batch({row.batch: row.rate for row in training})
    if largest is not None:
        trained = min(trained, largest)
    costs = UnitCosts(
        call=1 / _rate_at(sampling, drawn) / schedule.steps,
        decode=1 / _rate_at(decoding, drawn),
        reward=1 / scored.rate,
        transition=1 / _rate_at(training, trained),
    )
    return Bench(
        device=describe_device(model.device),
        dtype=config.model.dtype,
        image_size=model.image_size,
        steps=schedule.steps,
        matrix_peak=bench.peak,
        flops=flops,
        sampling=sampling,
        decoding=decoding,
        training=training,
        reward=scored,
        ratio_drift=drift,
        clip_range=find_objective(config).clip_range(config.objective),
        largest_micro_batch=largest,
        fit=fit,
        projections=[_project(name, task, model, costs) for name, task in tasks.items()],
        suggestions=_suggest(drawn, trained, fit),
    )


def _project(name: str, task: Config, model: LatentModel, costs: UnitCosts) -> Projection:
    """Return what a task's whole run takes with the model."""
    work = count_work(task, training_schedule(_fit_sampler(task, model), model).actions)
    return Projection(name, work, project_seconds(work, costs))


def _suggest(drawn: int, trained: int, fit: TrainingFit | None) -> dict[str, int | bool]:
    """Return settings for the batch sizes that were best in sampling and training, by their dotted names."""
    suggestions: dict[str, int | bool] = {"sample.batch_size": drawn, "runtime.micro_batch_size": trained}
    if fit is not None and fit.gradient_checkpointing:
        suggestions["runtime.gradient_checkpointing"] = True
    return suggestions


def _fit_sampler(config: Config, model: LatentModel) -> Config:
    """Return a configuration whose sampler is the model's."""
    if config.sampler.kind == model.sampler.kind:
        return config
    return config.model_copy(update={"sampler": model.sampler.default_settings()})


def measure_matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of several products of large square matrices, on a CPU of a convolution too.

    There each has its own library, and on some processors that of the convolutions is twice as fast.
    """
    best = 0.0
    for size in MATRIX_SIZES.get(device.type, SMALL_MATRICES):
        one = torch.randn(size, size, device=device, dtype=dtype)
        timing = time_work(device, lambda one=one: one @ one, 0.2)  # type: ignore[misc]
        best = max(best, 2 * size**3 / timing.fastest)
    if device.type == "cpu":
        channels, side = 256, 64
        images = torch.randn(4, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
        kernel = torch.randn(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        timing = time_work(device, lambda: torch.nn.functional.conv2d(images, kernel, padding=1), 0.2)
        best = max(best, 2 * 9 * channels * images.numel() / timing.fastest)
    return best


def time_work(device: torch.device, work: Callable[[], object], seconds: float) -> RepeatedTiming:
    """Time some work after a warm-up, `REPEATS` times and for `seconds` in all at least; the device is waited for."""
    work()
    times: list[float] = []
    while len(times) < REPEATS or sum(times) < seconds:
        _wait_for(device)
        started = time.perf_counter()
        work()
        _wait_for(device)
        times.append(time.perf_counter() - started)
    return RepeatedTiming(statistics.median(times), min(times), max(times), len(times))


def describe_device(device: torch.device) -> str:
    """Return the display name of a device."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({count(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else str(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak of tensors on CUDA since it was last reset; elsewhere the process's resident high-water mark."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # macOS counts bytes, Linux kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class _Bencher:
    """What all measurements share."""

    config: Config
    model: LatentModel
    schedule: Schedule
    batches: Sequence[int] | None
    seconds: float
    peak: float
    tell: Callable[[str], None]

    def draw(self, batch: int) -> Tensor:
        """Draw as sampling does; gives the images."""
        drawn = draw_batch(
            self.model,
            self.schedule,
            [""] * batch,
            list(range(batch)),
            guidance_scale=self.config.sample.guidance_scale,
            reduction=REDUCTION,
        )
        return drawn.images

    def decode(self, batch: int) -> Tensor:
        """Decode as many latents of noise."""
        model = self.model
        return model.decode(torch.randn(batch, *model.latent_shape, device=model.device, dtype=model.dtype))

    def count_flops(self, probe: Probe) -> Flops:
        """Count the floating-point operations of one unit of each kind, by running it once."""
        decode = count_flops(lambda: self.decode(1))
        return Flops(
            call=(count_flops(lambda: self.draw(1)) - decode) // self.schedule.steps,
            decode=decode,
            transition=count_flops(lambda: probe.take_step(1)) // probe.transitions_of(1),
        )

    def measure_sampling(self, flops: Flops) -> tuple[list[Measured], list[Measured]]:
        """Measure drawing, less its decoding, and decoding."""
        sampling: list[Measured] = []
        decoding: list[Measured] = []

        def measure(batch: int) -> float | None:
            self.tell(f"sampling, batch {batch}")
            whole = self._time(lambda: self.draw(batch))
            decode = whole and self._time(lambda: self.decode(batch))
            if whole is None or decode is None:
                return None
            (drawn, peak), (decoded, decode_peak) = whole, decode
            apart = [max(seconds - decoded.median, 1e-9) for seconds in (drawn.median, drawn.fastest, drawn.slowest)]
            calls = RepeatedTiming(apart[0], apart[1], apart[2], drawn.repeats)
            sampling.append(self._row(batch, batch, calls, peak, flops.call * self.schedule.steps))
            decoding.append(self._row(batch, batch, decoded, decode_peak, flops.decode))
            return batch / drawn.median

        self._sweep(measure, "drawing one image")
        return sampling, decoding

    def measure_training(self, probe: Probe, flops: Flops) -> list[Measured]:
        """Measure optimizer steps on one micro-batch."""
        rows: list[Measured] = []

        def measure(batch: int) -> float | None:
            self.tell(f"training, micro-batch {batch}")
            timed = self._time(lambda: probe.take_step(batch))
            if timed is None:
                return None
            rows.append(self._row(batch, probe.transitions_of(batch), *timed, flops.transition))
            return rows[-1].rate

        self._sweep(measure, "training on one transition")
        return rows

    def measure_reward(self, reward: Reward) -> Measured:
        """Measure a reward on drawn images, some of them several times."""
        self.tell(f"reward {reward.name}")
        images = self.draw(1).repeat(REWARD_BATCH, 1, 1, 1)
        if reward.neural:
            images = images.to(self.model.device)
        nothing = [{"sample": row, "seed": row, "group": row} for row in range(REWARD_BATCH)]
        timing = time_work(
            self.model.device, lambda: reward.score(images, ["cat"] * REWARD_BATCH, nothing), self.seconds
        )
        rate = REWARD_BATCH / timing.median
        return Measured(REWARD_BATCH, timing, rate, None, peak_memory(self.model.device))

    def _sweep(self, measure: Callable[[int], float | None], smallest: str) -> None:
        if not list(sweep_batches(measure, self.batches)):
            raise ConfigError(
                f"{smallest} needs more memory than there is on {self.model.device}; use --dtype bfloat16, a smaller "
                "--size or --batch, or a larger memory budget"
            )

    def _time(self, work: Callable[[], object]) -> tuple[RepeatedTiming, int] | None:
        """Time some work, and return its peak of memory; None where memory ends."""
        device = self.model.device
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            return time_work(device, work, self.seconds), peak_memory(device)
        except torch.OutOfMemoryError:
            pass
        release_memory(device)  # the error, gone out here, held the frames whose tensors fill the device
        return None

    def _row(self, batch: int, units: int, timing: RepeatedTiming, peak_bytes: int, flops: int) -> Measured:
        share = share_of_peak(units * flops, timing.median, self.peak)
        return Measured(batch, timing, units / timing.median, share, peak_bytes)


def _largest_micro_batch(probe: Probe, fit: TrainingFit | None, tell: Callable[[str], None]) -> int | None:
    if fit is not None:
        return fit.micro_batch_size
    if probe.model.device.type != "cuda":
        return None
    tell("the largest micro-batch")
    peak = training_peaks(probe)
    return largest_that_fits(lambda size: peak(size) is not None, MOST_PROBED)


def _rate_at(rows: Sequence[Measured], batch: int) -> float:
    """Return the rate at a batch size, or at the largest one measured below it, or at the smallest."""
    below = [row for row in rows if row.batch <= batch]
    return (below[-1] if below else rows[0]).rate


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
