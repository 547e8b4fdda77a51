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
from rlcm_cli.models.diffusion import DiffusionModel, PolicyKind
from rlcm_cli.models.full import load_unet
from rlcm_cli.models.loading import recommend_sampling
from rlcm_cli.models.lora import load_foreign_lora
from rlcm_cli.phases.events import Advanced, Event, FileWritten, PhaseStarted
from rlcm_cli.phases.policy import load_configured_model
from rlcm_cli.phases.run import open_run
from rlcm_cli.phases.sample import REDUCTION, draw_batch
from rlcm_cli.phases.schedules import drawing_schedule
from rlcm_cli.store.adapters import find_adapter
from rlcm_cli.store.checkpoint import UNET_FILE, digest_safetensors, read_tensors
from rlcm_cli.store.pictures import arrange_sheet, to_picture, write_png
from rlcm_cli.store.quarantine import find_run

SHEET_COLUMNS = 8
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

    A LoRA from elsewhere, or none, is drawn as `recommend_sampling` says.
    """
    base = _settings_of_lora(adapter)
    chosen = override_section(base[0] if base else ModelSettings(), model)
    if base and chosen.name == base[0].name:
        sampling = base[1]
    else:
        recommended = recommend_sampling(
            chosen.name, revision=chosen.revision, policy=chosen.policy, distilled_lora=chosen.distilled_lora
        )
        sampling = override_section(SampleSettings(), recommended)
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


def load_drawing_model(drawing: Drawing, device: str) -> DiffusionModel:
    """Load the model of a drawing, with its LoRA at its scale, or with the U-Net that full training made of its own.

    Raises `ConfigError` for a strength of a whole U-Net, and `ModelError` for weights of another model.
    """
    model, adapter = load_configured_model(drawing.model, device), drawing.adapter
    if adapter is None:
        return model
    file = Path(adapter.place)
    if not file.match(UNET_FILE):
        load_foreign_lora(model, adapter.place, adapter.scale)
    elif adapter.scale != 1:
        raise ConfigError(f"--lora-scale {adapter.scale:g}: {file} is a whole U-Net, without a strength; leave it out")
    else:
        try:
            load_unet(model, read_tensors(file), adapter.digest)
        except ModelError as error:
            raise ModelError(f"--lora {file}: {error}") from None
    return model


def generate(drawing: Drawing, model: DiffusionModel, folder: Path) -> Iterator[Event]:
    """Draw the images into a folder, one PNG each, and lay them on `sheet.png`."""
    plan = [
        (prompt, drawing.seed + number * drawing.count + member)
        for number, prompt in enumerate(drawing.prompts)
        for member in range(drawing.count)
    ]
    if not 0 <= drawing.seed <= MAX_SEED - len(plan):
        raise ConfigError(f"--seed {drawing.seed}: seeds are whole numbers from 0 below 2^63")
    sample = drawing.sample
    schedule = drawing_schedule(sample, model)
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
            write_png(path, to_picture(image), _describe(drawing, model.policy, prompt, seed))
            images.append(image)
        yield Advanced(len(part))
    write_png(folder / "sheet.png", arrange_sheet(images, min(SHEET_COLUMNS, max(drawing.count, 4))))
    yield FileWritten(folder / "sheet.png", f"contact sheet of {len(images)} images in {folder}")


def _describe(drawing: Drawing, policy: PolicyKind, prompt: str, seed: int) -> PngInfo:
    sample, adapter = drawing.sample, drawing.adapter
    of_policy: Mapping[PolicyKind, Mapping[str, object]] = {
        "lcm": {"spacing": sample.spacing},
        "ddim": {"eta": sample.eta},
        "tcd": {"spacing": sample.spacing, "gamma": sample.gamma},
    }
    info = PngInfo()
    for key, value in {
        "prompt": prompt,
        "seed": seed,
        "policy": policy,
        "steps": sample.steps,
        "guidance_scale": sample.guidance_scale,
        **of_policy[policy],
        "model": Path(drawing.model.name).name if Path(drawing.model.name).exists() else drawing.model.name,
        "lora": adapter.digest or adapter.place if adapter else "",
        "lora_scale": adapter.scale if adapter else "",
        "software": f"rlcm {__version__}",
    }.items():
        info.add_itxt(key, str(value))
    return info


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "prompt"
