"""The pipeline that a configuration names as its teacher."""

from __future__ import annotations

from collections.abc import Sequence

from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError, ForeignFileError
from rlcm_cli.learning.teacher import find_misfit
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.variant import Variant
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import training_schedule
from rlcm_cli.store.checkpoint import TrainerState
from rlcm_cli.wording import command


def find_teacher(config: Config, model: LatentModel, prompts: Sequence[str]) -> LatentModel | None:
    """Return the pipeline that teaches, loaded once and kept with the model; None where none but the model does.

    Args:
        config: Of the run.
        model: What is trained; the teacher gets its image size, dtype and device.
        prompts: Those that will be encoded; the teacher's text encoders are there only while they are.

    Raises:
        ConfigError: If it cannot teach this model.
        ModelError: If it is not there, or is no such pipeline.
    """
    settings = config.teacher
    if not settings.is_pipeline:
        return None
    key = f"{settings.source}@{settings.revision}"
    if key not in model.companions:
        teacher = load_model(
            settings.source,
            revision=settings.revision,
            dtype=config.model.dtype,
            device=str(model.device),
            variant=Variant(model.image_size, config.model.quantize),
            prompts=list(dict.fromkeys(prompts)),
        )
        fault = find_misfit(model, teacher, training_schedule(config, model).timesteps)
        if fault is not None:
            raise ConfigError(
                f"teacher.source {settings.source}: {fault}; use the pipeline that the model was distilled from, "
                "another one with its latents, or base"
            )
        model.companions[key] = teacher
    return model.companions[key]


def check_teacher(run: Run, state: TrainerState, digest: str | None) -> None:
    """Raise `ForeignFileError` where another pipeline taught before a checkpoint than the one with this digest."""
    if None not in (state.teacher_digest, digest) and state.teacher_digest != digest:
        raise ForeignFileError(
            f"{run.layout.checkpoint(state.number)}: was taught by another pipeline than teacher.source "
            f"'{run.config.teacher.source}' loads here (weights, configuration or dtype differ); use the same "
            "files, or start a new run from what was trained: "
            f"{command('loop', '--from', run.layout.root, '--run', 'NEW')}"
        )
