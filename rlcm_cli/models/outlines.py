"""A pipeline of its configurations alone: every module with its shapes, on torch's meta device, and no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlcm_cli.models.architectures import without_text
from rlcm_cli.models.components import describe_module
from rlcm_cli.models.folders import PipelineFolder
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import choose_dtype, find_classes, freeze_pipeline, join_components, set_scheduler
from rlcm_cli.models.parts import Parts
from rlcm_cli.samplers import find_sampler

META = torch.device("meta")


@quiet_libraries()
def outline_model(
    folder: PipelineFolder, parts: Parts, *, sampler: str, image_size: tuple[int, int] | None
) -> LatentModel:
    """Make the model that a folder's configurations describe, in bfloat16, with its text encoders.

    A prompt is encoded to random numbers of the right shapes, so that no tokenizer is needed.

    Args:
        folder: The pipeline's; only configurations are read.
        parts: What is read of them already.
        sampler: Kind of its sampler.
        image_size: (height, width) in pixels, None for the pipeline's own.

    Raises:
        ModelError: For configurations that make no such pipeline, or a size that it cannot have.
    """
    kinds, family = find_classes(folder, parts), parts.family
    pipeline = join_components(folder, parts, kinds, _describe_components(folder, parts, kinds))
    set_scheduler(folder.name, pipeline, parts, find_sampler(sampler))
    freeze_pipeline(pipeline, family, META)
    model = LatentModel(
        pipeline,
        without_text(family),
        find_sampler(sampler),
        META,
        torch.bfloat16,
        digest="",
        commit=folder.commit,
    )
    if image_size is not None:
        model.set_image_size(*image_size)
    return model


def _describe_components(folder: PipelineFolder, parts: Parts, kinds: Mapping[str, Any]) -> dict[str, Any]:
    return {
        part: None
        if part.startswith("tokenizer")
        else describe_module(folder, part, kind, choose_dtype(parts.family, part, torch.bfloat16))
        for part, kind in kinds.items()
        if part != "scheduler"
    }
