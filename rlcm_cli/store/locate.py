"""Which run or LoRA a path means."""

from __future__ import annotations

import re
from pathlib import Path

from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.store.checkpoint import (
    LORA_FILE,
    MARKER_FILE,
    find_checkpoint_weights,
    latest_checkpoint,
    read_trainer_state,
)
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.remote.objects import is_url
from rlcm_cli.store.remote.remote_run import fetch_adapter


def find_run(path: Path) -> RunLayout:
    """Find the run that contains a path. Raises `ConfigError` if none does."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        layout = RunLayout(folder)
        if is_run(folder) or (layout.config.is_file() and folder == resolved):
            return layout
    raise ConfigError(f"{path}: lies in no run directory (no config.json in any folder above it)")


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, by what lies in it; a model's folder has a config.json, too."""
    layout = RunLayout(folder)
    return layout.config.is_file() and ((folder / "checkpoints").is_dir() or layout.inputs.is_file())


def find_adapter(named: str) -> Path | None:
    """Find the LoRA file of a run (its newest checkpoint), a checkpoint folder or a file; None: no such path or URL.

    If the denoiser itself was trained, its file. Raises `ModelError` if the path is there but holds neither.
    """
    path = fetch_adapter(named) if is_url(named) else Path(named)
    if path.is_file():
        _check_checkpoint_of(path)
        return path
    if not path.is_dir():
        return None
    if (path / "checkpoints").is_dir():
        layout = RunLayout(path)
        path = layout.checkpoint(latest_checkpoint(layout))
    file = find_checkpoint_weights(path)
    # A whole pipeline has a denoiser as well, which nobody trained.
    if file is not None and not (path / "model_index.json").is_file():
        _check_checkpoint_of(file)
        return file
    raise ModelError(f"{named}: holds no LoRA; name a run, a checkpoint folder with {LORA_FILE}, or a LoRA file")


def _check_checkpoint_of(file: Path) -> None:
    """Check the checkpoint that weights are of, where they lie in one of a run. Raises as `read_trainer_state`."""
    for folder in file.absolute().parents[:3]:  # in the folder of an average that of a denoiser is the third
        number = re.fullmatch(r"\d{6,9}", folder.name, re.ASCII)
        if number and folder.parent.name == "checkpoints" and (folder / MARKER_FILE).exists():
            read_trainer_state(RunLayout(folder.parent.parent), int(number[0]))
