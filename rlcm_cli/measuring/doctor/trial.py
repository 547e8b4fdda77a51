"""A model tried once: loaded, drawn, compared with diffusers, re-scored, trained one step, exported and read back.

Each thing is done by the function that a run does it with. What is written lies in a temporary folder.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.device import allow_tf32, release_memory, select_device
from rlcm_cli.errors import ModelError, RlcmError
from rlcm_cli.events import Event
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.learning.log_probs import check_ratio, numerics
from rlcm_cli.measuring.bench import describe_device, peak_memory
from rlcm_cli.measuring.doctor.finding import Finding, Status, format_memory
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.models.export import draw_by_pipeline, use_scheduler
from rlcm_cli.models.fingerprint import modules_of
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.offloading import offload_parts
from rlcm_cli.phases.sample import REDUCTION, draw_batch
from rlcm_cli.pictures.drawing import follow_model
from rlcm_cli.pictures.export import Exported, Format, Source, export, settle_call
from rlcm_cli.runs.policy import attach, load_configured_model
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.samplers import PipelineCall
from rlcm_cli.store.checkpoint import digest_safetensors, find_checkpoint_weights
from rlcm_cli.wording import count

PROMPT, SEED = "a cat", 0
RATE = 1e-3
"""Learning rate of the one step: large enough to be seen in an image, so that an export without effect is found."""
LARGEST_MEAN = {"float32": 0.5, "tf32": 8.0, "float16": 8.0, "bfloat16": 8.0}
"""Levels of 255 by which rounding moves the pixels of an image on average, where each call adds to it."""
BLANK = 1.0
"""Standard deviation of the pixels, in levels of 255, below which an image shows nothing."""


STEPS = ("load", "draw", "diffusers", "ratio", "train", "export")


@dataclass(frozen=True)
class Outcome:
    """What a step found out."""

    found: str
    fault: str = ""
    """What is wrong, and what to do; empty where nothing is."""
    noted: bool = False
    """Whether there is something to know that is not a fault."""


def try_model(resolve: Callable[[], Config], steps: int | None) -> Iterator[Finding]:
    """Take one step after another with a model; after one that fails, the others are not tried.

    `resolve` returns the configuration that it is trained with; `steps` are model calls an image, None for as many as
    are recommended.
    """
    waiting = deque(STEPS)
    with tempfile.TemporaryDirectory(prefix="rlcm-doctor-") as folder:
        try:
            config = resolve()
            device = select_device(config.runtime.device)
            work = take_steps(config, steps, Path(folder))
            while waiting:
                yield _measure(work, f"try: {waiting[0]}", device)
                waiting.popleft()
            return
        except RlcmError as error:
            fault = str(error)
        except torch.OutOfMemoryError:
            fault = (
                "memory ended; use --dtype bfloat16, a smaller --size, --set runtime.gradient_checkpointing=true, or "
                "a device with more memory"
            )
        yield Finding(f"try: {waiting.popleft()}", "problem", fault)
        if waiting:
            yield Finding("try", "note", f"not tried after this: {', '.join(waiting)}")


def _measure(work: Iterator[Outcome], topic: str, device: torch.device) -> Finding:
    """Take the next step, and tell its seconds and its peak of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    outcome = next(work)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = f"{time.perf_counter() - started:.1f} s"
    found = f"{outcome.found}; {seconds}, peak {format_memory(peak_memory(device))}"
    status: Status = "problem" if outcome.fault else "note" if outcome.noted else "ok"
    return Finding(topic, status, found, outcome.fault)


def take_steps(config: Config, steps: int | None, folder: Path) -> Iterator[Outcome]:
    """Yield what each of `STEPS` finds out; what it writes lies in the folder.

    Raises an `RlcmError` or torch's `OutOfMemoryError` where one fails.
    """
    allow_tf32(config.runtime.tf32)
    settings, sample, sampler = follow_model(config.model, config.sampler.kind)
    if steps is not None:
        sample = sample.model_copy(update={"steps": steps})
    # With the text encoders, which the pipeline's own call needs.
    model = load_configured_model(settings, sampler.kind, config.runtime.device)
    fewer = f", the denoiser in {settings.quantize}" if settings.quantize else ""
    yield Outcome(f"in {settings.dtype}{fewer}, on {describe_device(model.device)}, with its text encoders")
    full = config.train.parameters == "full"
    source, call = settle_call(Source(folder, "", settings, sample, sampler, full, checked=(PROMPT,)), model)
    image = _draw(source, model)
    yield _look_at(image, source)
    yield _compare(model, image, call, numerics(config))
    train = config.train.model_copy(update={"learning_rate": RATE, "lr_decay_iterations": 0})
    config = config.model_copy(update={"model": settings, "train": train})
    attach(config, model)
    if config.runtime.offload:
        offload_parts(model)
    probe = Probe(config, model, samples=2, batch_size=1, steps=config.sample.steps)
    yield _check_ratio(probe)
    yield _train(probe)
    model.trained.save(model, folder)
    del model, probe
    release_memory(select_device(config.runtime.device))
    yield _export(source, folder, config.runtime.device)


def _draw(source: Source, model: LatentModel) -> Tensor:
    """Draw an image, uint8 [3, H, W], as `generate` does."""
    schedule = drawing_schedule(source.sampler, source.sample.steps, model)
    guidance = source.sample.guidance_scale
    return draw_batch(model, schedule, [PROMPT], [SEED], guidance_scale=guidance, reduction=REDUCTION).images[0]


def _look_at(image: Tensor, source: Source) -> Outcome:
    _, height, width = image.shape
    sample = source.sample
    found = (
        f"'{PROMPT}', {width} × {height} pixels, {count(sample.steps, 'call')} of the sampler {source.sampler.kind}, "
        f"guidance {sample.guidance_scale:g}"
    )
    blank = image.float().std() < BLANK
    return Outcome(found, "the image is blank; try --dtype float32 and what is recommended above" if blank else "")


def _compare(model: LatentModel, image: Tensor, call: PipelineCall, rounding: str) -> Outcome:
    """Draw the same by the pipeline's own call, from the same noise."""
    own = model.pipeline.scheduler
    try:
        with faults_of_libraries():
            use_scheduler(model.pipeline, call)
            other = draw_by_pipeline(model.pipeline, PROMPT, SEED, call)
    except ForeignError as fault:
        if model.dtype == torch.float16 and len({part.dtype for part in _list_parts(model)}) > 1:
            return Outcome(
                "not compared: what overflows float16 is in another type, which diffusers' own pipeline does not "
                "take; the export is compared in float32",
                noted=True,
            )
        raise ModelError(
            f"diffusers' own pipeline fails ({fault}); use --dtype float32 or bfloat16, or another diffusers"
        ) from fault
    finally:
        model.pipeline.scheduler = own
    difference = (other.int() - image.int()).abs()
    largest, mean = int(difference.max()), difference.double().mean().item()
    if not largest:
        return Outcome("diffusers' own pipeline draws the same image from the same noise")
    found = (
        f"diffusers' own pipeline draws the same from the same noise but for {mean:.2g} of 255 levels on average, "
        f"{largest} at most"
    )
    advice = "report it, with the model's name" if rounding == "float32" else "try --dtype float32"
    wrong = mean > LARGEST_MEAN[rounding]
    return Outcome(found, f"more than rounding in {rounding} explains; {advice}" if wrong else "")


def _list_parts(model: LatentModel) -> Iterable[Any]:
    """Return the modules of the pipeline but for the denoiser, whose weights may be quantised."""
    return [part for name, part in modules_of(model.pipeline, model.family).items() if name != model.family.denoiser]


def _check_ratio(probe: Probe) -> Outcome:
    """Compare the log-probabilities of drawn actions with those that training gives them."""
    drift = probe.ratio_drift(1)
    check_ratio(drift, numerics(probe.config), "of this check")
    within = f" within {drift:.1e}" if drift else ""
    return Outcome(f"actions of a run, scored again by training, have the probability ratio 1{within}")


def _train(probe: Probe) -> Outcome:
    norm, moved = probe.train_once()
    which = f"{moved:,} of {count(len(probe.parameters), 'tensor')}"
    first = " (in a LoRA's first step those of B)" if 2 * moved == len(probe.parameters) else ""
    return Outcome(f"a step of {probe.config.objective.kind} moved {which}{first}; gradient norm {norm:.2g}")


def _export(source: Source, folder: Path, device: str) -> Outcome:
    file = find_checkpoint_weights(folder)
    if file is None:
        raise RuntimeError(f"{folder}: no weights were saved")
    trained = dataclasses.replace(source, file=file, digest=digest_safetensors(file))
    form: Format = "pipeline" if source.full else "diffusers"
    work = export(
        trained,
        form,
        folder / "export",
        dtype="float32",
        device=device,
        title="trial",
        describe=lambda exported, place: None,
    )
    verification = _finish(work).verification
    size = sum(each.stat().st_size for each in (folder / "export").rglob("*.safetensors"))
    changed = "" if verification.largest else f" (the step changed it by {verification.trained:.2g} levels on average)"
    return Outcome(f"{format_memory(size)}, read back in float32: {verification}{changed}")


def _finish(work: Generator[Event, None, Exported]) -> Exported:
    """Run a phase to its end, and return what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast("Exported", end.value)
