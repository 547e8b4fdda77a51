"""The policy of a run: the model with the adapter of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError, ForeignFileError, ModelError
from rlcm_cli.models.lcm import ConsistencyModel, load_model
from rlcm_cli.models.lora import attach_lora, load_lora, save_lora
from rlcm_cli.phases.run import Run, check_run, create_run
from rlcm_cli.store.adapters import find_adapter, read_adapter_settings
from rlcm_cli.store.checkpoint import (
    TrainerState,
    digest_safetensors,
    publish_checkpoint,
    read_lora,
    read_tensors,
    read_trainer_state,
)
from rlcm_cli.store.shards import REMEDY


def load_policy_model(config: Config) -> ConsistencyModel:
    """Load the model of a configuration with a fresh adapter from the run's seed."""
    settings, lora = config.model, config.lora
    model = load_model(settings.name, revision=settings.revision, dtype=settings.dtype, device=config.runtime.device)
    attach_lora(model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, run_seed=config.seed)
    return model


def start_run(root: Path, config: Config) -> tuple[Run, ConsistencyModel]:
    """Open or make a run, and load its model.

    A run is made only once all that its configuration names was found good, so that a mistake leaves no
    directory behind that the corrected command would be refused for.
    """
    run = check_run(root, config)
    model = load_policy_model(config)
    model.schedule(config.sample.steps, original_steps=config.sample.original_steps, spacing=config.sample.spacing)
    if not run.layout.checkpoints():
        load_start(config, model)
    return create_run(root, config), model


def ensure_start(run: Run, model: ConsistencyModel) -> None:
    """Publish checkpoint 0, a function of the configuration alone, unless the run has checkpoints."""
    if run.layout.checkpoints():
        return
    load_start(run.config, model)
    publish_checkpoint(
        run.layout,
        0,
        write_lora=lambda folder: save_lora(model, folder),
        model_digest=model.digest,
        optimizer={},
        optimizer_steps=0,
        statistics={},
    )


def load_start(config: Config, model: ConsistencyModel) -> None:
    """Put the adapter into the model that a run of this configuration starts with.

    Raises `ConfigError` or `ModelError` where the LoRA to start from is not there or does not fit.
    """
    lora = config.lora
    attach_lora(model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, run_seed=config.seed)
    if lora.start is not None:
        file = find_adapter(lora.start)
        if file is None:
            raise ConfigError(f"lora.start: no such file or folder: {lora.start}")
        stated = read_adapter_settings(file)
        if (stated.rank, stated.alpha, stated.target_modules) != (
            lora.rank,
            lora.alpha,
            tuple(sorted(lora.target_modules)),
        ):
            raise ConfigError(
                f"lora.start: {file} has rank {stated.rank}, alpha {stated.alpha}, modules "
                f"{list(stated.target_modules)}, the configuration another; set [lora] to the same"
            )
        load_lora(model, read_tensors(file), digest_safetensors(file))


def load_checkpoint(run: Run, model: ConsistencyModel, number: int) -> TrainerState:
    """Put the adapter of a checkpoint into the model.

    Raises `ForeignFileError` where the checkpoint was trained on another base model.
    """
    state = read_trainer_state(run.layout, number)
    if state.model_digest != model.digest:
        raise ForeignFileError(
            f"{run.layout.checkpoint(number)}: was trained on another base model than '{run.config.model.name}' "
            "loads here (weights or dtype differ); use the same files, pin --set model.revision, or start a new run"
        )
    try:
        load_lora(model, read_lora(run.layout, number), state.policy_digest)
    except ModelError as error:
        path = run.layout.checkpoint(number)
        raise ForeignFileError(f"{path}: {error}; {REMEDY.format(path=path)}") from None
    return state
