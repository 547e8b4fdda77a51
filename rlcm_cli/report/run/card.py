"""The model card of an export: what was trained, for what, what came of it, and how to use it.

It is read elsewhere, by others, so it names no place of this machine: paths lose their folders, servers their address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlcm_cli import __version__
from rlcm_cli.config import Config
from rlcm_cli.pictures.contact_sheet import write_png
from rlcm_cli.report.private import withhold, withhold_text
from rlcm_cli.report.run.before_after import arrange_pairs
from rlcm_cli.report.run.curves import plot_curves
from rlcm_cli.report.run.data import RunData
from rlcm_cli.report.run.hacking_verdict import judge_hacking
from rlcm_cli.report.run.summary import (
    describe_change,
    describe_cost,
    describe_training,
    find_changes,
)

CARD = "README.md"
CURVES, PAIRS = "rewards.png", "before_after.png"
SETTINGS: Mapping[str, Sequence[str]] = {
    "model": ("dtype", "distilled_lora"),
    "sampler": (),
    "sample": ("steps", "guidance_scale", "samples", "group_size"),
    "objective": (),
    "train": (
        "learning_rate",
        "lr_schedule",
        "lr_decay_iterations",
        "minibatch_size",
        "inner_epochs",
        "advantage_clip",
        "max_grad_norm",
        "kl_weight",
        "ema_decay",
        "optimizer",
    ),
    "lora": ("rank", "alpha", "target_modules"),
    "last_step": ("mode",),
    "teacher": ("source", "weight"),
    "matching": ("weight", "calls"),
    "pretraining": ("source",),
}
"""The settings that a reader of the card looks for; empty: all of their table."""


@dataclass(frozen=True)
class CardSubject:
    """The export that a card is of."""

    title: str
    format: str
    """`diffusers`, `kohya` or `pipeline`."""
    weights: str
    """File of the LoRA; empty for a pipeline."""
    repository: str | None
    """On the hub; None: the folder stays here."""
    base: str
    """Embedded name, name of the folder, or hub id of the base model."""
    base_is: str
    """`embedded`, `folder` or `hub`."""
    revision: str | None
    distilled_lora: str | None
    licence: str | None
    licence_name: str | None
    licence_link: str | None
    pipeline: str
    """Class of diffusers."""
    scheduler: str
    """Class of diffusers that its scheduler has to be of."""
    scheduler_settings: Mapping[str, Any]
    """What that is made with, in addition to the settings of the pipeline's own."""
    arguments: Mapping[str, Any]
    """Of its `__call__`."""
    prompt: str
    checkpoint: int | None
    average: bool
    verification: str
    guided_by_embedding: bool
    """The base's denoiser takes the guidance scale as an embedding that ComfyUI has no input for."""
    loads_in_diffusers: bool
    """Whether diffusers reads the file of the weights."""
    absent: tuple[str, ...]
    """Components that the pipeline is without, which diffusers has to be told."""
    comfyui: Mapping[str, str]
    """What to set in ComfyUI → to which value; empty where it does not know the architecture."""


def write_card(subject: CardSubject, data: RunData | None, folder: Path) -> None:
    """Write the card into a folder, and next to it the pictures that the run has data for."""
    pictures = _draw_pictures(data, folder) if data else {}
    (folder / CARD).write_text(render_card(subject, data, pictures), encoding="utf-8")


def render_card(subject: CardSubject, data: RunData | None, pictures: Mapping[str, str]) -> str:
    """Render the card; `pictures` is file → what it shows."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rlcm_cli.report", "templates"),
        autoescape=False,  # noqa: S701  Markdown, where &lt; would be shown as it is
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md").render(
        subject=subject,
        header=_compose_header(subject),
        distilled_lora=subject.distilled_lora and _name_lora(subject.distilled_lora),
        call=", ".join(
            [
                f"prompt={json.dumps(subject.prompt)}",  # which not all pipelines take first
                *(f"{name}={value!r}" for name, value in subject.arguments.items()),
            ]
        ),
        scheduler_settings="".join(f", {name}={value!r}" for name, value in subject.scheduler_settings.items()),
        absent="".join(f", {part}=None" for part in subject.absent),
        place=json.dumps(subject.repository or "."),
        pictures=pictures,
        trained=describe_training(data) if data else "",
        sentences=_compose_sentences(data) if data else [],
        alarms=judge_hacking(data).alarms if data else [],
        settings=_list_settings(data.config) if data else {},
        version=__version__,
        diffusers=metadata.version("diffusers"),
        transformers=metadata.version("transformers"),
    )


def _name_lora(place: str) -> str:
    """Return the arguments by which `load_lora_weights` is told a LoRA, a file of a repository of the hub by two."""
    repository, _, file = withhold_text(place).rpartition("/")
    if repository.count("/") == 1 and file.endswith(".safetensors") and not Path(place).exists():
        return f'"{repository}", weight_name="{file}"'
    return json.dumps(withhold_text(place), ensure_ascii=False)


def _compose_header(subject: CardSubject) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=subject.licence,
        license_name=subject.licence_name,
        license_link=subject.licence_link,
        base_model=subject.base if subject.base_is == "hub" else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "reinforcement-learning", "rlcm"]
        + ["lora"] * (subject.format != "pipeline"),
        ignore_metadata_errors=True,
    )
    return data.to_yaml()


def _draw_pictures(data: RunData, folder: Path) -> dict[str, str]:
    pictures = {}
    if len(data.metrics) > 1:
        curves = plot_curves(data.metrics, summed=data.config.combine == "sum", bounds=data.run.run.reward_bounds())
        (folder / CURVES).write_bytes(curves)
        pictures[CURVES] = "Mean reward of each iteration's images; the band is one standard deviation over them."
    if len(data.evaluations) > 1:
        before, after = data.evaluations
        write_png(folder / PAIRS, arrange_pairs(before, after))
        pictures[PAIRS] = (
            f"Pairs of the same prompt and seed, drawn by checkpoint {before.checkpoint} (left of each pair) and by "
            f"checkpoint {after.checkpoint} (right)."
        )
    return pictures


def _compose_sentences(data: RunData) -> list[str]:
    changes = [describe_change(change) for change in find_changes(data)]
    return [describe_cost(data), *changes, *filter(None, [judge_hacking(data).sentence])]


def _list_settings(config: Config) -> dict[str, str]:
    """Return setting → value as text: of what is trained, and how."""
    values = config.model_dump(mode="json")
    skipped = "lora" if config.train.parameters == "full" else ""
    chosen = {"seed": config.seed}
    for section, keys in SETTINGS.items():
        if section != skipped:
            chosen |= {f"{section}.{key}": values[section][key] for key in keys or values[section]}
    return {key: _plain(value) for key, value in withhold(chosen).items() if value is not None}


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
