"""What a model is, how it is drawn, and what it takes, from its configurations: no weights are downloaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import psutil
import torch

from rlcm_cli.config import Config, LoraSettings
from rlcm_cli.core.device import select_device
from rlcm_cli.errors import ModelError, RlcmError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.hub import find_hub_fault
from rlcm_cli.measuring.doctor.finding import Finding, format_memory, shorten_home
from rlcm_cli.measuring.footprint import Footprint, measure_model
from rlcm_cli.models.embedded import EMBEDDED
from rlcm_cli.models.folders import Download, PipelineFolder, find_pipeline, measure_download
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora import ADAPTER, measure_lora
from rlcm_cli.models.lora_binding import adapted_layers
from rlcm_cli.models.outlines import outline_model
from rlcm_cli.models.parts import Parts, read_parts
from rlcm_cli.models.text_encoders import encoders_of
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.wording import count

BITS = {"4bit": 4, "8bit": 8, None: 16}
"""Of the denoiser's linear layers, by `model.quantize`; what a text tells of 16 holds of both types of 16 bits."""
FEWER, AGAIN = "--quantize 4bit", "--set runtime.gradient_checkpointing=true"
LARGER = "use a device with more memory, a smaller --size, or a smaller model"


def describe_model(resolve: Callable[[], Config]) -> Iterator[Finding]:
    """Tell one thing after another about the model of a configuration; the last is a problem where it is of no use.

    `resolve` returns the configuration, for which it may ask the model how it is drawn.
    """
    try:
        yield from _describe(resolve())
    except RlcmError as error:
        yield Finding("model", "problem", str(error))


def _describe(config: Config) -> Iterator[Finding]:
    settings = config.model
    room = _measure_room(select_device(config.runtime.device))
    folder = find_pipeline(settings.name, settings.pinned_revision, weights=False)
    parts = read_parts(folder)
    found = parts.recommend(settings.name, config.sampler.kind, settings.distilled_lora)
    model = outline_model(folder, parts, sampler=found.sampler, image_size=settings.image_sides or found.image_size)
    yield _tell_family(folder, parts, model)
    yield _tell_sampling(model, found)
    yield _tell_files(folder, measure_download(folder))
    if settings.distilled_lora is not None:
        size = format_memory(measure_lora(settings.distilled_lora))
        yield Finding("distilled LoRA", "ok", f"{settings.distilled_lora}: {size}")
    encoders = [getattr(model.pipeline, part) for part in encoders_of(model.pipeline, model.family)]
    try:
        with faults_of_libraries(), quiet_libraries():
            taken = measure_model(model, encoders, found.guidance_scale)
    except ForeignError as fault:
        raise ModelError(
            f"{settings.name}: its components do not fit each other ({fault}); use whole files of one model"
        ) from fault
    yield _tell_lora(model, taken)
    bits = BITS[settings.quantize]
    yield _tell_drawing(taken, bits, *room)
    yield _tell_training(taken, bits, *room)


def _tell_family(folder: PipelineFolder, parts: Parts, model: LatentModel) -> Finding:
    kinds = f"{parts.configs.index.get('_class_name')}, {type(model.denoiser).__name__}"
    numbers = sum(parameter.numel() for parameter in model.denoiser.parameters())
    commit = "" if folder.commit is None else f", commit {folder.commit[:12]}"
    found = f"{folder.name}{commit}: {parts.family.title} ({kinds} of {format_count(numbers)} parameters)"
    if parts.unused:
        return Finding("model", "note", found, f"its {' and '.join(parts.unused)} will not be used")
    return Finding("model", "ok", found)


def _tell_sampling(model: LatentModel, found: Recommendation) -> Finding:
    height, width = model.image_size
    told = (
        f"sampler {found.sampler}, {count(found.steps, 'call')} an image, guidance {found.guidance_scale:g}, "
        f"{width} × {height} pixels; {f'source: {found.source}' if found.source else 'the default of its family'}"
    )
    if found.training:
        chosen = ", ".join(f"{key} {value}" for key, value in found.training.items())
        told += f"; in training {chosen}"
    return Finding("sampling", "ok", told)


def _tell_files(folder: PipelineFolder, found: Download) -> Finding:
    files = f"{format_memory(found.size)} in {count(found.files, 'file')}"
    if folder.commit is None:
        where = "part of rlcm" if folder.name in EMBEDDED else f"in {shorten_home(folder.path.absolute())}"
        return Finding("files", "ok", f"{files}, {where}")
    fault = find_hub_fault()
    if fault:  # what is missing is not known
        advice = "look at the network; what is missing here is not known"
        return Finding("download", "note", f"{format_memory(found.here)} are in the hub cache, and {fault}", advice)
    if found.here >= found.size:
        return Finding("download", "ok", f"none: all {files} are in the hub cache")
    return Finding("download", "ok", f"{files}, of which {format_memory(found.here)} are in the hub cache")


def _tell_lora(model: LatentModel, taken: Footprint) -> Finding:
    layers = len(list(adapted_layers(model.denoiser, ADAPTER)))
    names = ", ".join(model.family.lora_targets)
    return Finding(
        "lora",
        "ok",
        f"{count(layers, 'module')} ({names}); {format_count(taken.adapter)} trained parameters at rank "
        f"{LoraSettings().rank}",
    )


def _tell_drawing(taken: Footprint, bits: int, room: int, where: str) -> Finding:
    dropped, kept = (taken.drawing_bytes(bits=bits, keeps_text=keeps) for keeps in (False, True))
    found = (
        f"{format_memory(dropped)} in {bits} bits, one image at a time ({format_memory(kept)} while the text encoders "
        "stay in memory)"
    )
    ways = {FEWER: taken.drawing_bytes(bits=4, keeps_text=False)}
    return _compare("memory to draw", found, dropped, ways, room, where)


def _tell_training(taken: Footprint, bits: int, room: int, where: str) -> Finding:
    def measure(bits: int, *, again: bool) -> int:
        return taken.training_bytes(bits=bits, checkpointing=again, keeps_text=False)

    plain, checkpointed = measure(bits, again=False), measure(bits, again=True)
    found = (
        f"{format_memory(plain)} in {bits} bits, one transition at a time ({format_memory(checkpointed)} with "
        "gradient checkpointing)"
    )
    ways = {AGAIN: checkpointed, FEWER: measure(4, again=False), f"{FEWER} and {AGAIN}": measure(4, again=True)}
    return _compare("memory to train", found, plain, ways, room, where)


def _compare(topic: str, found: str, size: int, ways: Mapping[str, int], room: int, where: str) -> Finding:
    """Say what fits: a note with the first of some ways, each with what it takes, where it does not as it is."""
    if size <= room:
        return Finding(topic, "ok", found)
    fitting = next((f"use {way}" for way, taken in ways.items() if taken <= room), LARGER)
    return Finding(topic, "note", f"{found}; {where} has {format_memory(room)}", fitting)


def _measure_room(device: torch.device) -> tuple[int, str]:
    """Return the bytes of a device's memory, and what a text calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, str(device)
    return psutil.virtual_memory().total, "this machine"


def format_count(number: int) -> str:
    """Return a number of weights with three digits.

    >>> format_count(5_400_000)
    '5.4 M'
    """
    exponent = min(int(math.log10(number * 1.0005)) // 3, 3) if number else 0
    return f"{number / 1000**exponent:.3g}{('', ' k', ' M', ' B')[exponent]}"
