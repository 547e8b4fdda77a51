"""Export a checkpoint for other tools: the file or folder that they read, checked by loading it as they do."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlcm_cli import __version__
from rlcm_cli.config import Config, ModelSettings, SampleSettings, keep_commit, override_section
from rlcm_cli.core.device import release_memory
from rlcm_cli.core.lora_file import LoraModule
from rlcm_cli.core.noise import derive_seed
from rlcm_cli.errors import ConfigError, CorruptFileError, ForeignFileError, MissingFileError, ModelError
from rlcm_cli.events import Advanced, Event, FileWritten, PhaseStarted
from rlcm_cli.models.export import (
    adapted_parts,
    apply_base,
    describe_call,
    draw_by_pipeline,
    read_back_lora,
    read_back_pipeline,
    read_fused,
    use_float32,
    use_scheduler,
    write_kohya,
    write_lora,
    write_pipeline,
)
from rlcm_cli.models.full import load_denoiser
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.licences import Licence, read_licence
from rlcm_cli.models.loading import DTYPES
from rlcm_cli.models.lora import ADAPTER, attach_lora, load_foreign_lora, load_lora, read_lora_file
from rlcm_cli.models.lora_binding import adapted_layers, bind_modules, compare_files, compare_fused
from rlcm_cli.phases.sample import REDUCTION, draw_batch
from rlcm_cli.pictures.comfyui import describe_use, name_guidance
from rlcm_cli.pictures.drawing import follow_model
from rlcm_cli.runs.policy import choose_variant, load_configured_model
from rlcm_cli.runs.run import Run, open_run
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.samplers import PipelineCall, SamplerSettings
from rlcm_cli.store.atomic import explain_safetensors, publish_folder, remove_folder
from rlcm_cli.store.checkpoint import (
    AVERAGE_FOLDER,
    digest_safetensors,
    find_checkpoint_weights,
    is_whole_denoiser,
    latest_checkpoint,
    read_safetensors,
    read_trainer_state,
)
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.locate import find_adapter, find_run
from rlcm_cli.wording import count

Format = Literal["diffusers", "kohya", "pipeline"]

RECORD_FILE = "export.json"
"""What was exported, and how it was checked; marks a folder as an export, which may be replaced."""
IMAGES = 4
PROMPTS = ("a cat", "a dog on green", "a red car", "a house")
"""Drawn to check a LoRA of no run."""


@dataclass(frozen=True)
class Source:
    """The trained weights that are exported, and what they were trained on."""

    file: Path
    digest: str
    model: ModelSettings
    sample: SampleSettings
    sampler: SamplerSettings
    full: bool
    """The file is a whole denoiser."""
    config: Config | None = None
    """Of the run; None: the file lies in none."""
    layout: RunLayout | None = None
    checkpoint: int | None = None
    model_digest: str | None = None
    average: bool = False
    """The file is the moving average of the weights."""
    checked: Sequence[str] = PROMPTS
    """What is drawn to check the export of a file of no run."""

    @property
    def prompts(self) -> Sequence[str]:
        """What is drawn to check the export."""
        if self.config is None or self.layout is None:
            return self.checked
        try:
            prompts = Run(self.layout, self.config).prompts
        except MissingFileError:  # a run that keeps none of its own, whose sources only it names
            return PROMPTS
        return next(iter(prompts.values())).training[:IMAGES]


@dataclass(frozen=True)
class Verification:
    """How images of an export, drawn by diffusers only, differ from those of the checkpoint, in levels of 255."""

    images: int
    largest: int
    share: float
    """Of the values that differ."""
    mean: float
    trained: float
    """The mean by which the checkpoint's images differ from the base model's: what an export without effect has."""

    def __str__(self) -> str:
        """Return it as a line."""
        drawn = f"the {count(self.images, 'image')} drawn with it by diffusers"
        if not self.largest:
            return f"{drawn} {'equals' if self.images == 1 else 'equal'} the checkpoint's"
        return (
            f"{drawn} {'differs' if self.images == 1 else 'differ'} from the checkpoint's by at most "
            f"{self.largest} of 255 levels, in {self.share:.2%} of the values (training changed them by "
            f"{self.trained:.2g} on average)"
        )

    def allows(self, dtype: str) -> bool:
        """Return whether the differences are those of rounding: in float32 of sums, in 16 bits of the weights too."""
        floor, part = (0.02, 0.01) if dtype == "float32" else (0.5, 0.1)
        return self.mean <= max(floor, part * self.trained)


@dataclass(frozen=True)
class Exported:
    """An export in its folder, checked."""

    folder: Path
    weights: str
    """File of the weights in the folder; empty for a pipeline, which is all of it."""
    title: str
    format: Format
    dtype: str
    source: Source
    verification: Verification
    pipeline: str
    """Class of diffusers."""
    call: PipelineCall
    """How it draws what was compared: as the checkpoint was trained to where diffusers can."""
    licence: Licence | None
    """Of the base model."""
    guided_by_embedding: bool
    """Whether the base's denoiser takes the guidance scale as an embedding that ComfyUI has no input for."""
    loads_in_diffusers: bool
    """Whether diffusers reads the file of the weights."""
    absent: tuple[str, ...]
    """Components that the pipeline is without, which diffusers has to be told."""
    comfyui: Mapping[str, str]
    """Settings with which ComfyUI draws with it; empty where it does not know the architecture."""


def find_source(place: str, *, average: bool, model: Mapping[str, Any]) -> Source:
    """Find and check what a run (its newest checkpoint), a checkpoint or a LoRA file holds.

    `model` are settings over the run's, or of the base model of a file that lies in none. Raises `ConfigError`,
    `ModelError`, or a `StoreError` where a checkpoint is missing or damaged.
    """
    if (Path(place) / "config.json").is_file() and not (Path(place) / "model_index.json").exists():
        latest_checkpoint(RunLayout(Path(place)))
    file = find_adapter(place)
    if file is None:
        raise ConfigError(f"{place}: no such run, checkpoint or LoRA file")
    try:
        layout = find_run(file)
        folder = file.resolve().relative_to(layout.root).parts
    except ConfigError:
        return _find_lone_lora(file, average=average, model=model)
    if folder[0] != "checkpoints":
        raise ConfigError(f"{file}: is not a checkpoint's; name a run, a checkpoint or a LoRA file")
    number = int(folder[1])
    state = read_trainer_state(layout, number)
    average = average or AVERAGE_FOLDER in folder
    if average:
        found = find_checkpoint_weights(layout.checkpoint(number) / AVERAGE_FOLDER)
        if found is None:
            raise ConfigError(
                f"{layout.checkpoint(number)}: keeps no moving average of the weights (train.ema_decay); leave --ema "
                "out"
            )
        file = found
    config = open_run(layout.root).config
    return Source(
        file,
        digest_safetensors(file),
        keep_commit(config.model, override_section(config.model, model)),
        config.sample,
        config.sampler,
        config.train.parameters == "full",
        config,
        layout,
        number,
        state.model_digest,
        average,
    )


def _find_lone_lora(file: Path, *, average: bool, model: Mapping[str, Any]) -> Source:
    if average:
        raise ConfigError(f"{file}: is not in a run, and only a run has a moving average; leave --ema out")
    if model.get("name") is None:
        raise ConfigError(f"{file}: lies in no run; name the base model that the LoRA is for by --model NAME")
    chosen, sample, settings = follow_model(override_section(ModelSettings(), model))
    try:
        digest = digest_safetensors(file)
    except CorruptFileError as error:
        raise ModelError(f"{error}; name a run, a checkpoint or a LoRA file") from None
    return Source(file, digest, chosen, sample, settings, is_whole_denoiser(file))


def check_request(source: Source, form: Format, out: Path, *, overwrite: bool) -> None:
    """Raise `ConfigError` for a format that makes no sense, or an output that is there."""
    if source.full and form != "pipeline":
        raise ConfigError(
            f"--format {form}: {source.file} is a whole denoiser, of which there is no LoRA; use --format pipeline"
        )
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise ConfigError(f"--out {out}: is there already; choose another, or add --overwrite")
    if not (out / RECORD_FILE).is_file() or out.is_symlink():
        raise ConfigError(f"--out {out}: is not an export (it has no {RECORD_FILE}), so it stays; choose another")


def export(
    source: Source,
    form: Format,
    out: Path,
    *,
    dtype: str,
    device: str,
    title: str,
    describe: Callable[[Exported, Path], None],
) -> Generator[Event, None, Exported]:
    """Write an export to a new folder, or in the place of another export, once its images are those of the checkpoint.

    Drawn and compared in float32, whatever the run's dtype is, so that only the export is looked at; and each layer's
    strength is read from the files, ours and the export's, without the library that wrote and loads them. `describe`
    adds what people read. Raises `ModelError` where something differs, and leaves nothing behind.
    """
    prompts = source.prompts
    yield PhaseStarted("export", source.checkpoint or 0, 3 * len(prompts), "images")
    model = load_unreduced(source, device)
    if source.model_digest not in (None, choose_variant(source.model).digest(model.digest)):
        raise ForeignFileError(
            f"{source.file}: was trained on another base model than '{source.model.name}' is here (weights or dtype "
            "differ); name the same by --model, or pin its revision"
        )
    place = model.device
    use_float32(model)
    source, call = settle_call(source, model)
    use_scheduler(model.pipeline, call)
    base = yield from _draw(source, model)
    modules = _load_weights(source, model)
    wanted = yield from _draw(source, model)
    with publish_folder(out) as folder:
        with explain_safetensors():
            weights = _write_checked(model, form, folder, DTYPES[dtype], title, modules)
        about = _describe_model(source, form, model)
        del model  # the export is read back into another: two in float32 may not fit
        release_memory(place)
        pipeline = _read_back(source, form, weights, place)
        use_scheduler(pipeline, call)
        drawn = []
        for prompt, seed in zip(prompts, _seeds(prompts), strict=True):
            drawn.append(draw_by_pipeline(pipeline, prompt, seed, call))
            yield Advanced(1)
        verification = compare_images(torch.stack(drawn), wanted, base)
        if not verification.allows(dtype):
            raise ModelError(
                f"{out}: not written, since {verification}"
                + ("" if dtype == "float32" else f"; {dtype} has no room for what was learned, use --dtype float32")
            )
        exported = Exported(
            out,
            "" if form == "pipeline" else weights.name,
            title,
            form,
            dtype,
            source,
            verification,
            type(pipeline).__name__,
            call,
            **about,
        )
        (folder / RECORD_FILE).write_text(_record(exported), encoding="utf-8")
        describe(exported, folder)
        if out.exists():
            remove_folder(out)
    yield FileWritten(out, f"{_name_format(form)}; {verification}")
    return exported


def _describe_model(source: Source, form: Format, model: LatentModel) -> dict[str, Any]:
    """Return what an export says of its base model, by the fields of `Exported`."""
    return {
        "licence": read_licence(source.model.name, source.model.pinned_revision),
        "guided_by_embedding": model.guided_by_embedding and not name_guidance(model, source.sample),
        "loads_in_diffusers": form != "kohya" or model.family.names.kohya_in_diffusers,
        "absent": tuple(part for part in model.family.loading.optional if getattr(model.pipeline, part) is None),
        "comfyui": describe_use(model, source.model, source.sample),
    }


def load_unreduced(source: Source, device: str) -> LatentModel:
    """Load the base model with all bits of its weights, decoding whole images: what other tools load."""
    whole = source.model.model_copy(update={"quantize": None, "tiled_decoding": False})
    return load_configured_model(whole, source.sampler.kind, device)


def compare_images(drawn: Tensor, wanted: Tensor, base: Tensor) -> Verification:
    """Compare images, uint8 [B, 3, H, W] each."""
    differences = (drawn.int() - wanted.int()).abs()
    return Verification(
        images=len(drawn),
        largest=int(differences.max()),
        share=differences.gt(0).double().mean().item(),
        mean=differences.double().mean().item(),
        trained=(wanted.int() - base.int()).abs().double().mean().item(),
    )


def _load_weights(source: Source, model: LatentModel) -> dict[str, LoraModule]:
    """Put the weights into the model: those of a run as training does, any other LoRA as diffusers reads it.

    Returns the modules of the LoRA's file by the layers of the denoiser that they are loaded into; none of a whole
    denoiser.
    """
    try:
        if source.full:
            load_denoiser(model, read_safetensors(source.file), source.digest)
            return {}
        binding = bind_modules(
            read_lora_file(source.file, str(source.file), model.family), model.pipeline, model.family, str(source.file)
        )
        if source.config is not None:
            lora, seed = source.config.lora, source.config.seed
            attach_lora(model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, run_seed=seed)
            load_lora(model, read_safetensors(source.file), source.digest)
        else:
            load_foreign_lora(model, str(source.file), 1.0)
    except ModelError as error:
        raise ModelError(_name_once(source.file, str(error))) from None
    others = [part for part in adapted_parts(model) if part != model.family.denoiser]
    if others:
        raise ModelError(
            f"{source.file}: has layers for the {', '.join(others)}, which an export of the "
            f"{model.family.denoiser_title}'s would lose; use a LoRA of the {model.family.denoiser_title} only"
        )
    modules = binding.bound[model.family.denoiser]
    return {name: modules[name] for name, _ in adapted_layers(model.denoiser, ADAPTER)}


def _name_once(file: Path, message: str) -> str:
    return message if message.startswith(f"{file}: ") else f"{file}: {message}"


def _draw(source: Source, model: LatentModel) -> Generator[Event, None, Tensor]:
    schedule = drawing_schedule(source.sampler, source.sample.steps, model)
    images = []
    for prompt, seed in zip(source.prompts, _seeds(source.prompts), strict=True):
        drawn = draw_batch(
            model, schedule, [prompt], [seed], guidance_scale=source.sample.guidance_scale, reduction=REDUCTION
        )
        images.append(drawn.images[0])
        yield Advanced(1)
    return torch.stack(images)


def settle_call(source: Source, model: LatentModel) -> tuple[Source, PipelineCall]:
    """Return the source with settings that a pipeline of diffusers can draw with, and how it does.

    Noise that none of its schedulers adds is left out: the images are then those of the sampler outside of training.
    """
    sample, usual, known = source.sample, model.sampler.drawing_settings(), model.recommended
    drawing = known.drawing if known is not None and known.sampler == model.sampler.kind else {}
    quiet = override_section(source.sampler, {**model.sampler.drawing, **drawing})
    for settings in (source.sampler, quiet, usual):
        call = describe_call(model, settings, steps=sample.steps, guidance_scale=sample.guidance_scale)
        if call is not None:
            break
    else:
        raise ModelError(
            f"the sampler {model.sampler.kind} has no scheduler in diffusers, so an export cannot be checked"
        )
    if source.model.image_size is not None:
        height, width = model.image_size
        call = replace(call, arguments={**call.arguments, "height": height, "width": width})
    return replace(source, sampler=settings), call


def _write_checked(
    model: LatentModel,
    form: Format,
    folder: Path,
    dtype: torch.dtype,
    title: str,
    modules: Mapping[str, LoraModule],
) -> Path:
    """Write the weights, and read from their file that every layer has the strength that the LoRA's file says."""
    if form == "pipeline":
        base = apply_base(model, modules)
        weights = _write(model, form, folder, dtype, title)
        fused = read_fused(weights, model.family.denoiser, modules)
        compare_fused(fused, base, modules, "not written, since the pipeline")
    else:
        weights = _write(model, form, folder, dtype, title)
        written = read_lora_file(weights, weights.name, model.family)
        compare_files(written, modules, model.denoiser, model.family, "not written, since the export")
    return weights


def _write(model: LatentModel, form: Format, folder: Path, dtype: torch.dtype, title: str) -> Path:
    if form == "kohya":
        return write_kohya(model, folder / f"{title}.safetensors", dtype, title=title)
    return (write_lora if form == "diffusers" else write_pipeline)(model, folder, dtype)


def _read_back(source: Source, form: Format, weights: Path, device: torch.device) -> Any:
    if form == "pipeline":
        return read_back_pipeline(weights, device)
    base = load_unreduced(source, str(device))
    use_float32(base)
    if form == "kohya" and not base.family.names.kohya_in_diffusers:
        load_foreign_lora(base, str(weights), 1.0)
        return base.pipeline
    return read_back_lora(base, weights)


def _record(exported: Exported) -> str:
    """Write down what the export is of, without a place of this machine."""
    source = exported.source
    record = {
        "format": exported.format,
        "dtype": exported.dtype,
        "weights": exported.weights,
        "checkpoint": source.checkpoint,
        "average": source.average,
        "weights_digest": source.digest,
        "model_digest": source.model_digest,
        "pipeline": exported.pipeline,
        "scheduler": {"class": exported.call.scheduler, **exported.call.settings},
        "call": dict(exported.call.arguments),
        "verification": asdict(exported.verification),
        "software": f"rlcm {__version__}",
    }
    return json.dumps(record, indent=2) + "\n"


def _seeds(prompts: Sequence[str]) -> list[int]:
    return [derive_seed(0, "export", 0, index) for index in range(len(prompts))]


def _name_format(form: Format) -> str:
    return {"diffusers": "diffusers LoRA", "kohya": "kohya LoRA", "pipeline": "whole pipeline"}[form]
