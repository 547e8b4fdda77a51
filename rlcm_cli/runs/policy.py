"""The policy of a run: the model with the trained weights of a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlcm_cli.config import Config, ModelSettings
from rlcm_cli.core.device import allow_tf32, select_device
from rlcm_cli.errors import ConfigError, ForeignFileError, ModelError
from rlcm_cli.learning.optimizer import find_optimizer
from rlcm_cli.models.full import attach_full
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import attach_lora, load_lora
from rlcm_cli.models.memory import checkpoint_activations
from rlcm_cli.models.offloading import offload_parts
from rlcm_cli.models.variant import Variant
from rlcm_cli.processes.job import Processes
from rlcm_cli.runs.inputs import check_images, find_pairs
from rlcm_cli.runs.run import Run, check_run, create_run, pin_commit
from rlcm_cli.runs.schedules import training_schedule
from rlcm_cli.runs.teacher import find_teacher
from rlcm_cli.store.adapters import read_adapter_settings
from rlcm_cli.store.checkpoint import (
    OLD_FOLDER,
    TrainerState,
    digest_safetensors,
    find_drawing_digest,
    publish_checkpoint,
    read_average,
    read_safetensors,
    read_trainer_state,
    read_weights,
)
from rlcm_cli.store.locate import find_adapter
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.wording import command

EMPTY_PROMPT = ""
"""What is drawn to measure time and memory."""


def load_configured_model(
    settings: ModelSettings,
    sampler: str,
    device: str,
    prompts: list[str] | None = None,
    shard: Callable[[torch.nn.Module, torch.device], None] | None = None,
) -> LatentModel:
    """Load the model of a configuration for a sampler of a kind, with nothing to train attached.

    `prompts`: as of `load_model`; `shard`: of `Variant`.
    """
    return load_model(
        settings.name,
        revision=settings.pinned_revision,
        dtype=settings.dtype,
        device=device,
        sampler=sampler,
        distilled_lora=settings.distilled_lora,
        variant=replace(choose_variant(settings), shard=shard),
        prompts=prompts,
    )


def choose_variant(settings: ModelSettings) -> Variant:
    """Return how the model of a configuration is loaded."""
    return Variant(settings.image_sides, settings.quantize, settings.tiled_decoding)


def load_policy_model(
    config: Config, prompts: list[str] | None = None, processes: Processes = Processes()
) -> LatentModel:
    """Load the model of a configuration with what is trained attached, as it is before any training.

    `prompts` are those that will be encoded, so that the text encoders need not stay; None: they stay, as they do
    where captions are read at every step. `processes` share its weights where the configuration asks for it. Raises
    as `choose_sharding` and `load_model`.
    """
    allow_tf32(config.runtime.tf32)
    known = prompts if config.pretraining.source is None else None
    shard = choose_sharding(config, processes)
    model = load_configured_model(config.model, config.sampler.kind, config.runtime.device, known, shard)
    attach(config, model)
    if config.runtime.offload:
        offload_parts(model)
    return model


def choose_sharding(config: Config, processes: Processes) -> Callable[[torch.nn.Module, torch.device], None] | None:
    """Return what leaves each process a part of the denoiser's weights, where the configuration asks for it, or None.

    Raises `ConfigError` where there is nobody to share them with, or no way to exchange them.
    """
    if not config.runtime.shard_weights:
        return None
    off = "add --set runtime.shard_weights=false"
    if processes.size == 1:
        raise ConfigError(
            "runtime.shard_weights: this is a single process, without others to share the weights with; start several "
            f"by `accelerate launch` or torchrun (docs/clusters.md), or {off}"
        )
    kind = select_device(config.runtime.device).type
    if kind not in ("cuda", "cpu"):
        raise ConfigError(
            f"runtime.shard_weights: CUDA devices or processes on the CPU can share weights, {kind} cannot; {off}"
        )
    from rlcm_cli.processes.sharding import shard_weights  # half a second of imports

    return functools.partial(shard_weights, processes=processes)


def attach(config: Config, model: LatentModel) -> None:
    """Make trainable what the configuration trains: a fresh adapter from the run's seed, or the base's denoiser."""
    checkpoint_activations(model, config.runtime.gradient_checkpointing)
    if config.train.parameters == "full":
        # The KL penalty and the teacher's term ask the base at each step.
        asked = config.train.kl_weight or (config.teacher.weight and not config.teacher.is_pipeline)
        attach_full(model, keep_base_on=model.device if asked else torch.device("cpu"))
        return
    lora = config.lora
    attach_lora(model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, run_seed=config.seed)


def start_run(
    root: Path,
    config: Config,
    fit: Callable[[Run, LatentModel], Run] = lambda run, model: run,
    processes: Processes = Processes(),
) -> tuple[Run, LatentModel]:
    """Open or make a run, and load its model.

    A run is made only once all that its configuration names was found good, so that a mistake leaves no
    directory behind that the corrected command would be refused for. `fit`, such as `measuring.memory.fit_run`, may
    refuse it too, or give the run other runtime settings than it is made with. `processes` and errors: as of
    `load_policy_model`.
    """
    run = check_run(root, config)
    find_optimizer(config.train.optimizer)
    model = load_policy_model(run.config, [EMPTY_PROMPT, *run.all_prompts()], processes)
    config = pin_commit(run.config, model.commit)
    training_schedule(config, model)
    check_images(run.layout, config)
    find_pairs(config, model)
    find_teacher(config, model, run.all_prompts())
    if not run.layout.checkpoints():
        load_start(config, model)
    fitted = fit(replace(run, config=config), model)
    create_run(root, config)
    return fitted, model


def ensure_start(run: Run, model: LatentModel) -> None:
    """Publish checkpoint 0, which depends only on the configuration, unless the run has checkpoints."""
    if run.layout.checkpoints():
        return
    load_start(run.config, model)
    publish_checkpoint(
        run.layout,
        0,
        write_weights=functools.partial(write_start, model),
        model_digest=model.digest,
        optimizer={},
        optimizer_steps=0,
        statistics={},
    )


def write_start(model: LatentModel, folder: Path) -> None:
    """Write the weights that a run starts with, unless they are the base model's."""
    if model.adapter_digest != model.digest:
        model.trained.save(model, folder)


def load_start(config: Config, model: LatentModel) -> None:
    """Load into the model the weights that a run of this configuration starts with.

    Raises `ConfigError` or `ModelError` where the LoRA to start from is not there or does not fit.
    """
    attach(config, model)
    lora = config.lora
    if lora.start is not None:
        file = find_adapter(lora.start)
        if file is None:
            raise ConfigError(f"lora.start: no such file or folder: {lora.start}")
        stated = read_adapter_settings(file)
        targets = tuple(sorted(lora.target_modules or model.family.lora_targets))
        if (stated.rank, stated.alpha, stated.target_modules) != (lora.rank, lora.alpha, targets):
            raise ConfigError(
                f"lora.start: {file} has rank {stated.rank}, alpha {stated.alpha}, modules "
                f"{list(stated.target_modules)}, the configuration another; set [lora] to the same"
            )
        load_lora(model, read_safetensors(file), digest_safetensors(file))


def load_checkpoint(run: Run, model: LatentModel, number: int) -> TrainerState:
    """Put the trained weights of a checkpoint into the model.

    Raises `ForeignFileError` where the checkpoint was trained on another base model.
    """
    state = read_trainer_state(run.layout, number)
    _load(run, model, state, state.policy_digest, functools.partial(read_weights, run.layout, number))
    return state


def load_drawing_policy(run: Run, model: LatentModel, number: int) -> TrainerState:
    """Put the weights that draw with a checkpoint into the model: its trained ones, or the old policy's it has.

    Returns the checkpoint's state with the digest of these weights. Raises as `load_checkpoint`.
    """
    state = read_trainer_state(run.layout, number)
    digest = find_drawing_digest(run.layout, state)
    if digest == state.policy_digest:
        return load_checkpoint(run, model, number)
    _load(run, model, state, digest, lambda: read_average(run.layout, number, OLD_FOLDER) or {})
    return state.model_copy(update={"policy_digest": digest})


def _load(
    run: Run, model: LatentModel, state: TrainerState, digest: str, read: Callable[[], dict[str, Tensor]]
) -> None:
    """Put tensors of a checkpoint into the model, unless they are there."""
    if state.model_digest != model.digest:
        raise ForeignFileError(
            f"{run.layout.checkpoint(state.number)}: was trained on another base model than '{run.config.model.name}' "
            "loads here (weights, configuration, tokenizer or dtype differ); use the same files, or start a new run "
            f"from what was trained: {command('loop', '--from', run.layout.root, '--run', 'NEW')}"
        )
    if model.adapter_digest == digest:  # gigabytes may be read for nothing
        return
    try:
        model.trained.load(model, read(), digest)
    except ModelError as error:
        path = run.layout.checkpoint(state.number)
        raise ForeignFileError(f"{path}: {error}; {REMEDY.format(path=path)}") from None
