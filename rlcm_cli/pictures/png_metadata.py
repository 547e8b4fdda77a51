"""How a picture was made, written into the PNG and read back: text chunks of plain values, nothing that is run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL.PngImagePlugin import PngInfo

from rlcm_cli import __version__
from rlcm_cli.config import ModelSettings, override_section
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.models.embedded import EMBEDDED
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.pictures.drawing import (
    HUB_ID,
    MAX_SEED,
    Adapter,
    Drawing,
    ImageSpec,
    find_lora,
    settings_of_lora,
    show_name,
)
from rlcm_cli.pictures.png_texts import read_png_texts
from rlcm_cli.samplers import find_sampler, read_setting, write_setting

_MODEL_KEYS = ("revision", "dtype", "distilled_lora", "image_size", "quantize")
SOFTWARE = "rlcm "
LARGEST_BATCH = 4096
LOOKED_IN = (Path(), Path("runs"))
"""Folders in which the LoRA that a picture names is looked for: where a user would have typed its path from."""


@dataclass(frozen=True)
class Provenance:
    """What a picture says of itself."""

    file: Path
    spec: ImageSpec
    place_in_batch: tuple[int, int]
    model: Mapping[str, Any]
    """Settings of `ModelSettings`; of a folder its last part."""
    model_digest: str
    steps: int
    sample: Mapping[str, Any]
    """Settings of `SampleSettings`, but for the steps."""
    sampler: Mapping[str, Any]
    """Settings of the sampler, its kind included."""
    lora: str
    """Reference of an `Adapter`; empty: none."""
    lora_digest: str
    scale: float


def describe(drawing: Drawing, model: LatentModel, spec: ImageSpec, place_in_batch: tuple[int, int]) -> PngInfo:
    """Write down how an image is made, in chunks that any viewer of PNG files shows; no path of this machine."""
    row, size = place_in_batch
    revision = model.commit or drawing.model.pinned_revision
    recorded = list_settings(drawing, spec) | ({"revision": revision} if revision else {})
    recorded |= {
        "model_digest": model.digest,
        "batch": f"{row + 1}/{size}",
        "software": f"{SOFTWARE}{__version__}",
    }
    info = PngInfo()
    for key, value in recorded.items():
        info.add_itxt(key, value)
    return info


def list_settings(drawing: Drawing, spec: ImageSpec) -> dict[str, str]:
    """Return what an image is made with, as its chunks have it, as far as that is known before a model is loaded."""
    settings, sample, adapter = drawing.model, drawing.sample, drawing.adapter
    known: dict[str, object] = {
        "prompt": spec.prompt,
        "seed": spec.seed,
        "sampler": drawing.sampler.kind,
        "steps": sample.steps,
        "guidance_scale": sample.guidance_scale,
        **{name: write_setting(value) for name, value in drawing.sampler if name != "kind"},
        "model": show_name(settings.name),
        "dtype": settings.dtype,
        "distilled_lora": settings.distilled_lora and show_name(settings.distilled_lora),
        "image_size": settings.image_size,
        "quantize": settings.quantize,
        "tiled_decoding": settings.tiled_decoding or None,
    }
    if adapter:
        known |= {"lora": adapter.reference, "lora_digest": adapter.digest, "lora_scale": adapter.scale}
    return {key: str(value) for key, value in known.items() if value not in (None, "")}


def describe_sheet(files: Sequence[str]) -> PngInfo:
    """Write down which pictures a sheet shows, in chunks of a PNG; each of them says how it was made."""
    info = PngInfo()
    info.add_itxt("sheet_of", "\n".join(files))
    info.add_itxt("software", f"{SOFTWARE}{__version__}")
    return info


def read_provenance(file: Path) -> Provenance:
    """Read how a picture of `rlcm generate` was made. Raises `ConfigError` for any other file."""
    recorded = read_png_texts(file, "--from-image ")
    if not recorded.get("software", "").startswith(SOFTWARE) or "prompt" not in recorded:
        raise ConfigError(
            f"--from-image {file}: has no generation metadata; name a PNG that `rlcm generate` has drawn"
        )
    try:
        sampler = _read_sampler(recorded)
        row, size = (int(part) for part in recorded["batch"].split("/"))
        spec = ImageSpec(recorded["prompt"], int(recorded["seed"]))
        if not 1 <= row <= size <= LARGEST_BATCH or not 0 <= spec.seed < MAX_SEED or not spec.prompt.strip():
            raise ValueError("batch, seed or prompt out of range")
        return Provenance(
            file=file,
            spec=spec,
            place_in_batch=(row - 1, size),
            model={
                "name": _check_model(recorded["model"]),
                **{key: recorded[key] for key in _MODEL_KEYS if key in recorded},
                **({"tiled_decoding": True} if "tiled_decoding" in recorded else {}),
            },
            model_digest=recorded["model_digest"],
            steps=int(recorded["steps"]),
            sample={"guidance_scale": _parse("guidance_scale", recorded["guidance_scale"])},
            sampler=sampler,
            lora=_check_reference(recorded.get("lora", "")),
            lora_digest=recorded.get("lora_digest", ""),
            scale=_parse("lora_scale", recorded.get("lora_scale", "1")),
        )
    except KeyError as error:
        raise ConfigError(
            f"--from-image {file}: does not say its {error.args[0]}; another version of rlcm has drawn it, so give "
            "the settings as options"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"--from-image {file}: what it says of itself cannot be ({error}); give the settings as options"
        ) from None


def _read_sampler(recorded: Mapping[str, str]) -> dict[str, Any]:
    """Read the sampler and its settings. Raises `KeyError` for one that is not recorded, and `ValueError`."""
    try:
        sampler = find_sampler(recorded["sampler"])
        values = {
            name: read_setting(recorded[name])
            for name, setting in sampler.settings.model_fields.items()
            if name != "kind" and (name in recorded or setting.default is not None)
        }
        return override_section(sampler.default_settings(), values).model_dump(mode="json")
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _parse(key: str, text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{key} {text}")
    return value


def _check_model(name: str) -> str:
    if not re.fullmatch(rf"{HUB_ID}|[\w-][\w. -]*", name):
        raise ValueError(f"model '{name}' is neither a name nor a hub id")
    return name


def _check_reference(reference: str) -> str:
    path = PurePosixPath(reference)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00-\x1f]", reference):
        raise ValueError(f"LoRA '{reference}' is neither a file's name nor a hub id")
    return reference


def find_recorded_lora(recorded: Provenance) -> Adapter | None:
    """Find the LoRA that a picture was drawn with, here or in `runs/`; None: it was drawn with none.

    Raises `ModelError` where it is not there, or is another by now.
    """
    if not recorded.lora:
        return None
    if not recorded.lora_digest:
        return find_lora(recorded.lora, recorded.scale)
    fault = "which is not here"
    for folder in LOOKED_IN:
        if (folder / recorded.lora).is_file():
            found = find_lora(str(folder / recorded.lora), recorded.scale)
            if found.digest == recorded.lora_digest:
                return found
            fault = f"and {folder / recorded.lora} is another by now (digest {found.digest[:12]}…)"
    raise ModelError(
        f"--from-image {recorded.file}: was drawn with the LoRA {recorded.lora} "
        f"(digest {recorded.lora_digest[:12]}…), {fault}; point to it with --lora"
    )


def settle_model(recorded: Provenance, adapter: Adapter | None, asked: str | None) -> dict[str, Any]:
    """Return the model's settings that a picture tells of, to be put over those of the LoRA's run.

    A picture names a folder by its last part: where the run has the whole path, the run's stays. `asked` is the model
    that the user names instead, if any. Raises `ModelError` where a folder is not here.
    """
    values = dict(recorded.model)
    if asked is not None:
        return {"dtype": values["dtype"], "name": asked}
    known = settings_of_lora(adapter)
    base = known.model if known else ModelSettings()
    for key in ("name", "distilled_lora"):
        own = getattr(base, key)
        if own and show_name(own) == values.get(key):
            del values[key]
    name = values.get("name")
    if name and name not in EMBEDDED and not Path(name).is_dir() and not re.fullmatch(HUB_ID, name):
        raise ModelError(
            f"--from-image {recorded.file}: was drawn with the model folder {name}, which is not here; "
            "point to it with --model"
        )
    return values
