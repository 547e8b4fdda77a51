"""What is drawn outside of training: images, each with a model, a sampler and, where one is named, a LoRA."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm_cli.config import Config, ModelSettings, SampleSettings, keep_commit, override_section
from rlcm_cli.config.settings import write_size
from rlcm_cli.errors import ConfigError, CorruptFileError, ModelError
from rlcm_cli.models.full import load_denoiser
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import load_foreign_lora, locate_lora, scale_foreign_lora, unload_foreign_lora
from rlcm_cli.models.offloading import keep_parts, offload_parts
from rlcm_cli.models.parts import recommend
from rlcm_cli.runs.policy import load_configured_model
from rlcm_cli.runs.run import open_run
from rlcm_cli.samplers import SAMPLERS, SamplerSettings, find_sampler
from rlcm_cli.store.checkpoint import (
    WEIGHT_FILES,
    digest_safetensors,
    is_whole_denoiser,
    read_safetensors,
    read_trainer_state,
)
from rlcm_cli.store.locate import find_adapter, find_run

MAX_SEED = 2**63 - 1
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
HUB_LORA = HUB_ID + r"(?:/[\w-][\w.-]*\.safetensors)?"
"""A repository, or a file of one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSpec:
    """One image."""

    prompt: str
    seed: int
    """`torch.Generator("cpu").manual_seed(seed)` draws it in diffusers, above 2³² − 1 `core.noise.seed_generator`."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA to draw with, or a denoiser that full training made."""

    place: str
    """File, or hub id."""
    digest: str
    """Of a local file; empty for a hub id."""
    scale: float
    name: str
    """What people call it: its run's name, say."""
    reference: str
    """Hub id, or the file's path from the folder of its run on: what pictures may tell of a path."""

    @property
    def is_whole_denoiser(self) -> bool:
        """Whether it stands for the model's denoiser, and so has no strength."""
        return is_whole_denoiser(Path(self.place))


@dataclass(frozen=True)
class Drawing:
    """Images that differ only in prompt and seed."""

    specs: tuple[ImageSpec, ...]
    model: ModelSettings
    sample: SampleSettings
    sampler: SamplerSettings
    adapter: Adapter | None = None
    place_in_batch: tuple[int, int] | None = None
    """(row, size) of the batch that a single image is drawn in, on which its last bits depend."""

    @property
    def prompts(self) -> list[str]:
        """Prompt of each image."""
        return [spec.prompt for spec in self.specs]


def plan_images(prompts: Sequence[str], *, count: int, seed: int) -> tuple[ImageSpec, ...]:
    """Plan `count` images a prompt; image i of all has seed + i. Raises `ConfigError`."""
    if not 0 <= seed <= MAX_SEED - len(prompts) * count:
        raise ConfigError(f"--seed {seed}: seeds are whole numbers from 0 below 2^63")
    repeated = [prompt for prompt in prompts for _ in range(count)]
    return tuple(ImageSpec(prompt, seed + index) for index, prompt in enumerate(repeated))


def find_lora(place: str, scale: float = 1.0) -> Adapter:
    """Find the LoRA that a run, checkpoint, file, hub id or file of one names.

    Raises `ModelError` or `ConfigError`.
    """
    file = find_adapter(place)
    if file is not None:
        try:
            return Adapter(str(file), digest_safetensors(file), scale, *_name_file(place, file.resolve()))
        except CorruptFileError as error:
            raise ModelError(f"--lora {error}; name a run, a checkpoint, a LoRA file or a hub id") from None
    if re.fullmatch(HUB_LORA, place):
        locate_lora(place)  # before a model is loaded for it
        return Adapter(place, "", scale, place, place)
    raise ConfigError(f"--lora {place}: no such run, checkpoint or file, and no hub id (OWNER/NAME)")


def _name_file(place: str, file: Path) -> tuple[str, str]:
    """Return the display name of a LoRA file, and its reference; neither reveals its path on this machine."""
    try:
        root = find_run(file).root
    except ConfigError:
        usual = file.name in {Path(name).name for name in WEIGHT_FILES}
        return (file.parent.name, f"{file.parent.name}/{file.name}") if usual else (file.stem, file.name)
    inside = file.relative_to(root)
    name = root.name
    if "checkpoints" in Path(place).parts:
        name += f", checkpoint {inside.parts[1].lstrip('0') or 0}" + ", average" * ("ema" in inside.parts)
    return name, f"{root.name}/{inside.as_posix()}"


def plan_drawing(
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    adapter: Adapter | None,
    model: Mapping[str, Any],
    sample: Mapping[str, Any],
    sampler: Mapping[str, Any],
) -> Drawing:
    """Complete what a user asked for: `count` images a prompt, with `choose_settings`."""
    settings = choose_settings(adapter, model=model, sample=sample, sampler=sampler)
    return Drawing(plan_images(prompts, count=count, seed=seed), *settings, adapter)


def choose_settings(
    adapter: Adapter | None, *, model: Mapping[str, Any], sample: Mapping[str, Any], sampler: Mapping[str, Any]
) -> tuple[ModelSettings, SampleSettings, SamplerSettings]:
    """Put the settings that were asked for over those of the run that the LoRA lies in; None means "not given".

    A LoRA from elsewhere, or none, is drawn as the model says (`models.parts.recommend`).
    """
    run = settings_of_lora(adapter)
    own = run.model if run else ModelSettings()
    chosen, kind = keep_commit(own, override_section(own, model)), sampler.get("kind")
    if run and chosen.name == run.model.name:
        sampling, settings = run.sample, run.sampler
        if kind not in (None, settings.kind):
            settings = find_sampler(kind).drawing_settings()
    else:
        chosen, sampling, settings = follow_model(chosen, kind)
    return chosen, override_section(sampling, sample), override_section(settings, sampler)


def follow_model(
    model: ModelSettings, sampler: str | None = None
) -> tuple[ModelSettings, SampleSettings, SamplerSettings]:
    """Return how a model recommends to be drawn, by a sampler of a kind or its own: its size, steps and sampler.

    The size is left as it is where the model's settings have one. Raises `ModelError`.
    """
    found = recommend(model.name, revision=model.pinned_revision, sampler=sampler, distilled_lora=model.distilled_lora)
    if model.image_size is None and found.image_size is not None:
        model = model.model_copy(update={"image_size": write_size(*found.image_size)})
    sampling = override_section(SampleSettings(), {"steps": found.steps, "guidance_scale": found.guidance_scale})
    return model, sampling, override_section(SAMPLERS[found.sampler].drawing_settings(), found.drawing)


def settings_of_lora(adapter: Adapter | None) -> Config | None:
    """Return the configuration of the run that a LoRA lies in; None: it lies in none."""
    if adapter is None or not adapter.digest:
        return None
    try:
        layout = find_run(Path(adapter.place))
    except ConfigError:
        return None
    return open_run(layout.root).config


def load_drawing_model(drawing: Drawing, device: str) -> LatentModel:
    """Load the model of a drawing, with its LoRA at its scale, or with the denoiser that full training made.

    Raises `ConfigError` for a strength of a whole denoiser, and `ModelError` for weights of another model.
    """
    return ModelCache(device).set_up(drawing)


class ModelCache:
    """The model of one drawing after another, which is loaded again only where more than the LoRA differs."""

    def __init__(self, device: str, *, offload: bool = False) -> None:
        """Load to a device, where parts of a model that are offloaded are only while they work."""
        self._device, self._offload = device, offload
        self._settings: tuple[ModelSettings, str] | None = None
        self._model: LatentModel | None = None
        self._adapter: Adapter | None = None

    def set_up(self, drawing: Drawing) -> LatentModel:
        """Return the model of a drawing; do not use the one returned before. Raises as `load_drawing_model`."""
        if drawing.adapter:
            check_strength(drawing.adapter)
        model = self._fitting_model(drawing)
        if model is None:
            self._model = None  # two at once may not fit into memory
            model = load_configured_model(drawing.model, drawing.sampler.kind, self._device, drawing.prompts)
            self._model, self._settings, self._adapter = model, (drawing.model, drawing.sampler.kind), None
        keep_parts(model)  # diffusers sets hooks of its own where it finds some when it loads a LoRA
        self._exchange(model, drawing)
        if self._offload:
            offload_parts(model)
        model.read_prompts(drawing.prompts)
        return model

    def _fitting_model(self, drawing: Drawing) -> LatentModel | None:
        replaced = self._adapter is not None and self._adapter.is_whole_denoiser
        if self._settings != (drawing.model, drawing.sampler.kind) or (replaced and self._adapter != drawing.adapter):
            return None
        return self._model

    def _exchange(self, model: LatentModel, drawing: Drawing) -> None:
        there, wanted = self._adapter, drawing.adapter
        if there == wanted:
            return
        if there and wanted and there.place == wanted.place:
            scale_foreign_lora(model, wanted.scale)
        else:
            if there:
                unload_foreign_lora(model)
            if wanted:
                _load(model, wanted)
                _tell_changed_base(model, wanted, drawing.model)
        self._adapter = wanted


def check_strength(adapter: Adapter) -> None:
    """Raise `ConfigError` for a whole denoiser that is asked for at another strength than 1."""
    if adapter.is_whole_denoiser and adapter.scale != 1:
        raise ConfigError(
            f"--scale {adapter.scale:g}: {adapter.place} is a whole denoiser, without a strength; leave it out"
        )


def _load(model: LatentModel, adapter: Adapter) -> None:
    if not adapter.is_whole_denoiser:
        load_foreign_lora(model, adapter.place, adapter.scale)
        return
    try:
        load_denoiser(model, read_safetensors(Path(adapter.place)), adapter.digest)
    except ModelError as error:
        raise ModelError(f"--lora {adapter.place}: {error}") from None


def _tell_changed_base(model: LatentModel, adapter: Adapter, settings: ModelSettings) -> None:
    """Warn where a run's base model is not what it was when the checkpoint was trained, although it has its name."""
    known = settings_of_lora(adapter)
    if known is None or known.model != settings:
        return
    file = Path(adapter.place).resolve()
    layout = find_run(file)
    inside = file.relative_to(layout.root.resolve()).parts
    if inside[0] != "checkpoints":
        return
    state = read_trainer_state(layout, int(inside[1]))
    if state.model_digest != model.digest:
        _log.warning(
            "%s: the files of its base model %s are not those that it was trained on; images differ from the run's",
            adapter.name,
            show_name(settings.name),
        )


def show_name(name: str) -> str:
    """Return the name of a model or a file as pictures may tell it: of a path, its last part."""
    path = Path(name)
    return path.resolve().name if path.is_absolute() or path.exists() else name
