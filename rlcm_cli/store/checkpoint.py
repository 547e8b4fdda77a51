"""Checkpoints: the adapter, the optimizer's state and the prompt statistics, published as one folder.

checkpoints/000001/
pytorch_lora_weights.safetensors   as diffusers writes and reads it, with the alpha metadata
optimizer.safetensors              Adam's moments; one metadata key
prompt_statistics.json             component → prompt → newest rewards
trainer.json                       `TrainerState`
complete.json                      digest of each file above, written last
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from rlcm_cli.core.advantages import PromptStatistics
from rlcm_cli.core.digests import canonical_json, digest_tensors, sha256
from rlcm_cli.errors import CorruptFileError, MissingFileError
from rlcm_cli.store.atomic import publish_folder
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.manifest import Record
from rlcm_cli.store.shards import METADATA_KEY, REMEDY, read_json

LORA_FILE = "pytorch_lora_weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATISTICS_FILE = "prompt_statistics.json"
TRAINER_FILE = "trainer.json"
MARKER_FILE = "complete.json"


class TrainerState(Record):
    """What a checkpoint is of."""

    format_version: int = FORMAT_VERSION
    number: int
    """Iterations trained."""
    optimizer_steps: int
    model_digest: str
    policy_digest: str


def publish_checkpoint(
    layout: RunLayout,
    number: int,
    *,
    write_lora: Callable[[Path], None],
    model_digest: str,
    optimizer: Mapping[str, Tensor],
    optimizer_steps: int,
    statistics: Mapping[str, PromptStatistics],
) -> TrainerState:
    """Publish a checkpoint; `write_lora` puts `LORA_FILE` into the folder that it is given.

    Where another process published it first, that one stays: the same plan gives the same content.
    """
    path = layout.checkpoint(number)
    with publish_folder(path) as folder:
        with _explained_by_the_system():
            write_lora(folder)
        state = TrainerState(
            number=number,
            optimizer_steps=optimizer_steps,
            model_digest=model_digest,
            policy_digest=digest_safetensors(folder / LORA_FILE),
        )
        data = safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in optimizer.items()},
            metadata={METADATA_KEY: canonical_json({"format_version": FORMAT_VERSION})},
        )
        (folder / OPTIMIZER_FILE).write_bytes(data)
        (folder / STATISTICS_FILE).write_text(canonical_json(statistics), encoding="utf-8")
        (folder / TRAINER_FILE).write_text(canonical_json(state.model_dump()), encoding="utf-8")
        digests = {name: _digest(folder / name) for name in _FILES}
        marker = {"format_version": FORMAT_VERSION, "files": digests}
        (folder / MARKER_FILE).write_text(canonical_json(marker), encoding="utf-8")
    return read_trainer_state(layout, number)


def read_trainer_state(layout: RunLayout, number: int) -> TrainerState:
    """Check a checkpoint's digests and read what it is of.

    Raises `MissingFileError`, `CorruptFileError` or `FormatVersionError`.
    """
    path = layout.checkpoint(number)
    if not path.is_dir():
        raise MissingFileError(f"{path}: no such checkpoint; `rlcm inspect {layout.root}` lists those there are")
    try:
        files = read_json(path / MARKER_FILE).get("files")
    except (MissingFileError, CorruptFileError):
        # A checkpoint is whole or not there, so the remedy is for its folder, not for the file.
        raise CorruptFileError(
            f"{path / MARKER_FILE}: is gone or no JSON object; {REMEDY.format(path=path)}"
        ) from None
    for name in _FILES:
        file = path / name
        recorded = files.get(name) if isinstance(files, dict) else None
        if recorded is None or recorded != _digest(file):
            raise CorruptFileError(f"{file}: is not the file that was published; {REMEDY.format(path=path)}")
    try:
        return TrainerState.model_validate(read_json(path / TRAINER_FILE))
    except ValidationError:
        raise CorruptFileError(f"{path / TRAINER_FILE}: is no trainer state; {REMEDY.format(path=path)}") from None


def read_lora(layout: RunLayout, number: int) -> dict[str, Tensor]:
    """Read the adapter's tensors, under diffusers' names, of a checkpoint that was checked as above."""
    return read_tensors(layout.checkpoint(number) / LORA_FILE)


def read_optimizer(layout: RunLayout, number: int) -> dict[str, Tensor]:
    """Read the optimizer's tensors of a checkpoint that was checked as above."""
    return read_tensors(layout.checkpoint(number) / OPTIMIZER_FILE)


def read_statistics(layout: RunLayout, number: int) -> dict[str, PromptStatistics]:
    """Read the prompt statistics, by component of the reward, of a checkpoint that was checked as above."""
    text = (layout.checkpoint(number) / STATISTICS_FILE).read_text(encoding="utf-8")
    return {
        component: {prompt: tuple(rewards) for prompt, rewards in of_prompts.items()}
        for component, of_prompts in json.loads(text).items()
    }


def latest_checkpoint(layout: RunLayout) -> int:
    """Number of the newest checkpoint. Raises `MissingFileError` where there is none."""
    checkpoints = layout.checkpoints()
    if not checkpoints:
        raise MissingFileError(
            f"{layout.root}: holds no run yet; start one with `rlcm sample --task NAME --run {layout.root}` or "
            "`rlcm loop`"
        )
    return checkpoints[-1]


def digest_safetensors(path: Path) -> str:
    """Digest a safetensors file over its tensors and canonical metadata.

    safetensors writes several metadata keys in random order, so the bytes of diffusers' LoRA files are not
    canonical. Raises `CorruptFileError`.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return digest_tensors({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CorruptFileError(f"{path}: is no readable safetensors file ({error})") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file. Raises `CorruptFileError`."""
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CorruptFileError(f"{path}: is no readable safetensors file ({error})") from None


_FILES = (LORA_FILE, OPTIMIZER_FILE, STATISTICS_FILE, TRAINER_FILE)


def _digest(file: Path) -> str | None:
    """Digest a file of a checkpoint; None where it is not there or unreadable."""
    try:
        return digest_safetensors(file) if file.name == LORA_FILE else sha256(file.read_bytes())
    except (FileNotFoundError, CorruptFileError):
        return None


@contextlib.contextmanager
def _explained_by_the_system() -> Iterator[None]:
    """Turn the error with which safetensors reports a full disk into the `OSError` that it was."""
    try:
        yield
    except safetensors.SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from None
