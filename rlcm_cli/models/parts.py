"""What a pipeline's configurations say of it, read before its weights: what it is, and how it is drawn by nature.

Nothing here needs torch or diffusers, so that a configuration can be settled without loading a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import (
    FAMILIES,
    WITHOUT_EFFECT,
    Architecture,
    Configs,
    Family,
    class_of,
    find_family,
    list_components,
    refuse,
)
from rlcm_cli.models.embedded import EMBEDDED
from rlcm_cli.models.folders import PipelineFolder, find_pipeline
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import SAMPLERS, Sampler, find_sampler
from rlcm_cli.wording import nearest

RANDOM: Mapping[str, tuple[Family, Architecture]] = {
    name: (family, architecture) for family in FAMILIES.values() for name, architecture in family.architectures.items()
}
"""Architectures that are built with random weights, by their names."""
MEASURED = "emoji-lcm"
"""The embedded model among the architectures, which has its own weights."""


@dataclass(frozen=True)
class Parts:
    """A pipeline that is not loaded yet: its family, and what its configurations say."""

    family: Family
    configs: Configs

    @property
    def guided_by_embedding(self) -> bool:
        """Whether the denoiser takes the guidance scale as an embedding."""
        return self.family.guidance.is_embedded(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What guidance depends on."""
        return self.family.merge_settings(self.configs.denoiser, self.configs.index)

    @property
    def unused(self) -> list[str]:
        """Components that would change an image, and that none of the pipelines here has a place for."""
        known = {*list_components(), *WITHOUT_EFFECT}
        return [
            part
            for part, stated in self.configs.index.items()
            if isinstance(stated, list) and class_of(self.configs.index, part) and part not in known
        ]

    def choose_sampler(self, name: str, asked: str | None, distilled_lora: str | None) -> Sampler:
        """Return the sampler that the model is drawn with: the one of the kind that is asked for, or its own.

        Raises `ModelError` for what draws no image with this model, and `ConfigError` for an unknown sampler.
        """
        wanted = None if asked is None else find_sampler(asked)
        chosen = self.family.scheduling.choose_sampler(name, self.configs, wanted, distilled_lora)
        if wanted is not None:
            usual = self.family.scheduling.choose_sampler(name, self.configs, None, distilled_lora)
            if wanted.levels != usual.levels:
                fitting = [kind for kind, sampler in SAMPLERS.items() if sampler.levels == usual.levels]
                raise ModelError(
                    f"{name}: cannot be drawn with the sampler '{wanted.kind}', which is for models with other noise "
                    f"levels; use --sampler {' or '.join(fitting)}"
                )
        return chosen

    def recommend(self, name: str, asked: str | None, distilled_lora: str | None) -> Recommendation:
        """Return how the pipeline is drawn unless asked otherwise; arguments and errors as in `choose_sampler`."""
        chosen = self.choose_sampler(name, asked, distilled_lora)
        own = EMBEDDED.get(name)
        if own is not None and distilled_lora is None:
            known: Recommendation | None = own
        else:
            known = self.family.scheduling.recommend(name, self.configs, distilled_lora)
        if known is not None and known.sampler == chosen.kind:
            return known
        guidance = own.guidance_scale if own is not None else self.family.guidance.recommend(self.settings)
        if chosen.distilled and not self.guided_by_embedding:
            guidance = 1.0
        return Recommendation(chosen.kind, chosen.steps, guidance)


def recommend(
    name: str, *, revision: str | None, sampler: str | None = None, distilled_lora: str | None = None
) -> Recommendation:
    """Return how a pipeline is drawn unless asked otherwise, by a sampler of a kind or, of None, by its own.

    An embedded model is drawn as its card says, others as diffusers' pipelines and schedulers do. What is distilled
    into a plain denoiser (LCM-LoRA, TCD-LoRA) is drawn without guidance, which was distilled with it. Reads only
    configurations; raises as `load_model`.
    """
    parts = read_parts(find_pipeline(name, revision, weights=False))
    return parts.recommend(name, sampler, distilled_lora)


def read_parts(folder: PipelineFolder) -> Parts:
    """Read the configurations of a pipeline, and find its family.

    Raises `ModelError` for one of no known family, or that draws no image of a text.
    """
    index = folder.read_index()
    family = find_family(folder.name, index)
    scheduler = None
    if class_of(index, "scheduler"):
        settings = folder.read_config("scheduler", "scheduler_config.json")
        scheduler = {**settings, "_class_name": class_of(index, "scheduler")}
    configs = Configs(index, folder.read_config(family.denoiser), scheduler)
    fault = family.loading.find_fault(configs)
    if fault:
        raise refuse(folder.name, fault)
    return Parts(family, configs)


def recommend_architecture(name: str) -> Recommendation:
    """Return how the published model of an architecture is drawn. Raises `ModelError` for an unknown name."""
    if name == MEASURED:
        return recommend(name, revision=None)
    return find_architecture(name)[1].recommendation


def find_architecture(name: str) -> tuple[Family, Architecture]:
    """Return an architecture with its family. Raises `ModelError` for an unknown name."""
    if name not in RANDOM:
        raise ModelError(
            f"unknown architecture '{name}'{nearest(name, [*RANDOM])}; there are {', '.join([MEASURED, *RANDOM])}; a "
            "pipeline's folder is given by --model"
        )
    return RANDOM[name]
