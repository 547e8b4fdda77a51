"""Draw images with a model and, where one is named, a LoRA: PNGs that say how they were made, and a sheet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rlcm_cli import __version__
from rlcm_cli.config import ModelSettings, SampleSettings, override_section
from rlcm_cli.errors import ConfigError, CorruptFileError, ModelError
from rlcm_cli.models.embedded import RECOMMENDED_GUIDANCE
from rlcm_cli.models.lcm import ConsistencyModel, load_model
from rlcm_cli.models.lora import load_foreign_lora
from rlcm_cli.phases.events import Advanced, Event, FileWritten, PhaseStarted
from rlcm_cli.phases.run import open_run
from rlcm_cli.phases.sample import REDUCTION, draw_batch
from rlcm_cli.store.adapters import find_adapter
from rlcm_cli.store.checkpoint import digest_safetensors
from rlcm_cli.store.pictures import arrange_sheet, to_picture, write_png
from rlcm_cli.store.quarantine import find_run

SHEET_COLUMNS = 8
DIFFUSERS_GUIDANCE = 8.5
"""Default of `LatentConsistencyModelPipeline`."""
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Adapter:
    """A LoRA to draw with."""

    place: str
    """File, or hub id."""
    digest: str
    """Of a local file; empty for a hub id."""
    scale: float


@dataclass(frozen=True)
class Drawing:
    """What to draw."""

    prompts: Sequence[str]
    count: int
    """Images a prompt."""
    seed: int
    """Image i of all has seed + i: `torch.Generator("cpu").manual_seed(seed + i)` draws it in diffusers."""
    model: ModelSettings
    sample: SampleSettings
    adapter: Adapter | None = None


def find_lora(place: str, scale: float) -> Adapter:
    """Find the LoRA that a run, checkpoint, file or hub id names. Raises `ModelError` or `ConfigError`."""
    file = find_adapter(place)
    if file is not None:
        try:
            return Adapter(str(file), digest_safetensors(file), scale)
        except CorruptFileError as error:
            raise ModelError(f"--lora {error}; name a run, a checkpoint, a LoRA file or a hub id") from None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not place.startswith((".", "/")):
        return Adapter(place, "", scale)
    raise ConfigError(f"--lora {place}: no such run, checkpoint or file, and no hub id (OWNER/NAME)")


def plan_drawing(
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    adapter: Adapter | None,
    model: Mapping[str, Any],
    sample: Mapping[str, Any],
) -> Drawing:
    """Complete what a user asked for: `model` and `sample` over the settings of the run that the LoRA lies in.

    A LoRA from elsewhere, or none, is drawn with the defaults and the model's recommended guidance.
    """
    base = _settings_of_lora(adapter)
    chosen = override_section(base[0] if base else ModelSettings(), model)
    if base and chosen.name == base[0].name:
        sampling = base[1]
    else:
        sampling = SampleSettings(guidance_scale=RECOMMENDED_GUIDANCE.get(chosen.name, DIFFUSERS_GUIDANCE))
    return Drawing(prompts, count, seed, chosen, override_section(sampling, sample), adapter)


def _settings_of_lora(adapter: Adapter | None) -> tuple[ModelSettings, SampleSettings] | None:
    if adapter is None or not adapter.digest:
        return None
    try:
        layout = find_run(Path(adapter.place))
    except ConfigError:
        return None
    config = open_run(layout.root).config
    return config.model, config.sample


def load_drawing_model(drawing: Drawing, device: str) -> ConsistencyModel:
    """Load the model of a drawing, with its LoRA at its scale."""
    settings = drawing.model
    model = load_model(settings.name, revision=settings.revision, dtype=settings.dtype, device=device)
    if drawing.adapter:
        load_foreign_lora(model, drawing.adapter.place, drawing.adapter.scale)
    return model


def generate(drawing: Drawing, model: ConsistencyModel, folder: Path) -> Iterator[Event]:
    """Draw the images into a folder, one PNG each, and lay them on `sheet.png`."""
    plan = [
        (prompt, drawing.seed + number * drawing.count + member)
        for number, prompt in enumerate(drawing.prompts)
        for member in range(drawing.count)
    ]
    if not 0 <= drawing.seed <= MAX_SEED - len(plan):
        raise ConfigError(f"--seed {drawing.seed}: seeds are whole numbers from 0 below 2^63")
    sample = drawing.sample
    schedule = model.schedule(sample.steps, original_steps=sample.original_steps, spacing=sample.spacing)
    yield PhaseStarted("generate", 0, len(plan), "images")
    images: list[Tensor] = []
    for first in range(0, len(plan), sample.batch_size):
        part = plan[first : first + sample.batch_size]
        drawn = draw_batch(
            model,
            schedule,
            [prompt for prompt, _ in part],
            [seed for _, seed in part],
            guidance_scale=sample.guidance_scale,
            reduction=REDUCTION,
        )
        for (prompt, seed), image in zip(part, drawn.images, strict=True):
            path = folder / f"{len(images):05d}-{_slug(prompt)}-{seed}.png"
            write_png(path, to_picture(image), _describe(drawing, prompt, seed))
            images.append(image)
        yield Advanced(len(part))
    write_png(folder / "sheet.png", arrange_sheet(images, min(SHEET_COLUMNS, max(drawing.count, 4))))
    yield FileWritten(folder / "sheet.png", f"contact sheet of {len(images)} images in {folder}")


def _describe(drawing: Drawing, prompt: str, seed: int) -> PngInfo:
    sample, adapter = drawing.sample, drawing.adapter
    info = PngInfo()
    for key, value in {
        "prompt": prompt,
        "seed": seed,
        "steps": sample.steps,
        "guidance_scale": sample.guidance_scale,
        "spacing": sample.spacing,
        "model": Path(drawing.model.name).name if Path(drawing.model.name).exists() else drawing.model.name,
        "lora": adapter.digest or adapter.place if adapter else "",
        "lora_scale": adapter.scale if adapter else "",
        "software": f"rlcm {__version__}",
    }.items():
        info.add_itxt(key, str(value))
    return info


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "prompt"
