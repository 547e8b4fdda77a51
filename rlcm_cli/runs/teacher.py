"""The pipeline that a configuration names as its teacher, and the second score on it that matches distributions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlcm_cli.config import Config
from rlcm_cli.core.noise import derive_seed
from rlcm_cli.errors import ConfigError, ForeignFileError, ModelError
from rlcm_cli.learning.matching import FakeScore
from rlcm_cli.learning.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from rlcm_cli.learning.teacher import find_misfit
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import attach_lora
from rlcm_cli.models.variant import Variant
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import training_schedule
from rlcm_cli.store.checkpoint import FAKE_FOLDER, TrainerState, read_average, read_optimizer, write_optimizer
from rlcm_cli.store.reading import REMEDY
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
        if fault is None and config.matching.weight and teacher.is_distilled:
            fault = "was distilled to few steps, so that it is no score that matching.weight could match with"
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


def open_fake_score(run: Run, teacher: LatentModel, number: int) -> FakeScore:
    """Put the second score of a checkpoint, or a fresh one, on a teacher that was loaded for the run.

    Raises `ForeignFileError` where the checkpoint's does not fit, and what `read_optimizer` raises.
    """
    settings, path = run.config.matching, run.layout.checkpoint(number)
    seed = derive_seed(run.config.seed, "fake score")
    attach_lora(teacher, rank=settings.rank, alpha=settings.alpha, target_modules=None, run_seed=seed)
    parameters = teacher.trained.parameters(teacher)
    optimizer = make_optimizer(parameters, run.config.train, settings.learning_rate)
    weights = read_average(run.layout, number, FAKE_FOLDER)
    if weights is not None:
        try:
            teacher.trained.load(teacher, weights, "")
            restore_optimizer(optimizer, parameters, read_optimizer(run.layout, number, FAKE_FOLDER))
        except (ModelError, ValueError) as error:
            raise ForeignFileError(f"{path / FAKE_FOLDER}: {error}; {REMEDY.format(path=path)}") from None
    return FakeScore(teacher, parameters, optimizer)


def save_fake_score(fake: FakeScore, folder: Path) -> None:
    """Write the second score and its optimizer into a folder of a checkpoint."""
    fake.model.trained.save(fake.model, folder)
    write_optimizer(folder, optimizer_tensors(fake.optimizer, fake.parameters))
