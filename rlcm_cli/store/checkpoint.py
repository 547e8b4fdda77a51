"""Checkpoints: what is trained, the optimizer's state and the prompt statistics, published as one folder.

checkpoints/000001/
pytorch_lora_weights.safetensors   as diffusers writes and reads it, with the alpha metadata
ema/                               the same of the weights' moving average, where one is kept; not in checkpoint 0
optimizer.safetensors              Adam's moments; one metadata key
prompt_statistics.json             component → prompt → newest rewards
trainer.json                       `TrainerState`
complete.json                      digest of each file above, written last

Where the U-Net itself is trained, `unet/`, as diffusers writes it, stands in the place of the LoRA. Checkpoint 0 has
none then, for its gigabytes are those of the base model: it is the checkpoint whose policy digest is the model's.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from rlcm_cli.core.digests import canonical_json, digest_tensors
from rlcm_cli.errors import CorruptFileError, MissingFileError
from rlcm_cli.store.atomic import publish_folder
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.manifest import Record
from rlcm_cli.store.shards import METADATA_KEY, REMEDY, read_json
from rlcm_cli.wording import command

LORA_FILE = "pytorch_lora_weights.safetensors"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
WEIGHT_FILES = (LORA_FILE, UNET_FILE)
AVERAGE_FOLDER = "ema"
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
    """Of the file of the trained weights; `model_digest` where there is none."""


def publish_checkpoint(
    layout: RunLayout,
    number: int,
    *,
    write_weights: Callable[[Path], None],
    model_digest: str,
    optimizer: Mapping[str, Tensor],
    optimizer_steps: int,
    statistics: Mapping[str, PromptStatistics],
) -> TrainerState:
    """Publish a checkpoint; `write_weights` puts one of `WEIGHT_FILES`, or none, into the folder that it is given.

    What else it puts there is of the checkpoint too. Where another process published it first, that one stays: the
    same plan gives the same content.
    """
    path = layout.checkpoint(number)
    with publish_folder(path) as folder:
        with _explained_by_the_system():
            write_weights(folder)
            safetensors.torch.save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in optimizer.items()},
                folder / OPTIMIZER_FILE,
                metadata={METADATA_KEY: canonical_json({"format_version": FORMAT_VERSION})},
            )
        (folder / STATISTICS_FILE).write_text(canonical_json(statistics), encoding="utf-8")
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        digests = {name: _digest(folder / name) for name in files}
        state = TrainerState(
            number=number,
            optimizer_steps=optimizer_steps,
            model_digest=model_digest,
            policy_digest=digests.get(LORA_FILE) or digests.get(UNET_FILE) or model_digest,
        )
        (folder / TRAINER_FILE).write_text(canonical_json(state.model_dump()), encoding="utf-8")
        digests[TRAINER_FILE] = _digest(folder / TRAINER_FILE)
        marker = {"format_version": FORMAT_VERSION, "files": digests}
        (folder / MARKER_FILE).write_text(canonical_json(marker), encoding="utf-8")
    return read_trainer_state(layout, number)


def read_trainer_state(layout: RunLayout, number: int) -> TrainerState:
    """Check a checkpoint's digests and read what it is of.

    Raises `MissingFileError`, `CorruptFileError` or `FormatVersionError`.
    """
    path = layout.checkpoint(number)
    if not path.is_dir():
        raise MissingFileError(
            f"{path}: no such checkpoint; `{command('inspect', layout.root)}` lists those there are"
        )
    try:
        files = read_json(path / MARKER_FILE).get("files")
    except (MissingFileError, CorruptFileError):
        # A checkpoint is whole or not there, so the remedy is for its folder, not for the file.
        raise CorruptFileError(
            f"{path / MARKER_FILE}: is gone or no JSON object; {REMEDY.format(path=path)}"
        ) from None
    if not isinstance(files, dict):
        files = {}
    # What is read is checked, also what nobody published.
    weights = [file for folder in (path, path / AVERAGE_FOLDER) if (file := find_weights(folder))]
    for name in sorted({*files, *_ALWAYS, *(file.relative_to(path).as_posix() for file in weights)}):
        recorded = files.get(name)
        if recorded is None or recorded != _digest(path / name):
            raise CorruptFileError(f"{path / name}: is not the file that was published; {REMEDY.format(path=path)}")
    try:
        state = TrainerState.model_validate(read_json(path / TRAINER_FILE))
    except ValidationError:
        raise CorruptFileError(f"{path / TRAINER_FILE}: is no trainer state; {REMEDY.format(path=path)}") from None
    if find_weights(path) is None and state.policy_digest != state.model_digest:
        raise CorruptFileError(f"{path}: lacks its trained weights; {REMEDY.format(path=path)}")
    return state


def damaged_files(folder: Path) -> list[str]:
    """List the files that a checkpoint's marker names and that are not as they were published."""
    files = read_json(folder / MARKER_FILE)["files"]
    return [name for name, recorded in files.items() if recorded != _digest(folder / name)]


def find_weights(folder: Path) -> Path | None:
    """Find the file of trained weights in a checkpoint's folder or that of its average; None: there is none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def read_weights(layout: RunLayout, number: int) -> dict[str, Tensor]:
    """Read the trained tensors, under diffusers' names, of a checkpoint that was checked as above.

    Empty where it is the base model itself.
    """
    file = find_weights(layout.checkpoint(number))
    return read_tensors(file) if file else {}


def read_average(layout: RunLayout, number: int) -> dict[str, Tensor] | None:
    """Read the moving average of the trained tensors as `read_weights` does; None: the checkpoint has none."""
    file = find_weights(layout.checkpoint(number) / AVERAGE_FOLDER)
    return read_tensors(file) if file else None


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
        start = command("sample", "--task", "NAME", "--run", layout.root)
        raise MissingFileError(f"{layout.root}: holds no run yet; start one with `{start}` or `rlcm loop`")
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


_ALWAYS = (OPTIMIZER_FILE, STATISTICS_FILE, TRAINER_FILE)


def _digest(file: Path) -> str | None:
    """Digest a file of a checkpoint; None where it is not there or unreadable."""
    try:
        if file.name in (LORA_FILE, Path(UNET_FILE).name):
            return digest_safetensors(file)
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
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
