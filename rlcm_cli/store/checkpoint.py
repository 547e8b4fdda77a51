"""Checkpoints: what is trained, the optimizer's state and the prompt statistics, published as one folder.

checkpoints/000001/
pytorch_lora_weights.safetensors   as diffusers writes and reads it, with the alpha metadata
ema/                               the same of the weights' moving average, where one is kept; not in checkpoint 0
old/                               the same of the policy that draws with this checkpoint, where it is not the trained
                                   one: an average of the weights that an objective compares with
fake/                              LoRA and optimizer of the teacher's second score, where distribution is matched
optimizer.safetensors              Adam's moments; one metadata key
prompt_statistics.json             component → prompt → newest rewards
trainer.json                       `TrainerState`
complete.json                      digest and size of each file above, written last

Where the denoiser itself is trained, its folder as diffusers writes it, such as `unet/`, stands in the place of the
LoRA. Checkpoint 0 has none then, for its gigabytes are those of the base model: it is the checkpoint whose policy
digest is the model's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from rlcm_cli.core.advantages import PromptStatistics
from rlcm_cli.core.digests import canonical_json, digest_contents
from rlcm_cli.core.lora_file import DENOISERS
from rlcm_cli.errors import CorruptFileError, ForeignFileError, MissingFileError
from rlcm_cli.store.atomic import explain_safetensors, publish_folder
from rlcm_cli.store.identity import check_owner, read_run_identity
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.reading import REMEDY, Record, open_file, parse_object, parse_record, read_json, read_object
from rlcm_cli.store.shards import METADATA_KEY
from rlcm_cli.store.tensor_file import DTYPES, NO_TENSORS, read_stored
from rlcm_cli.wording import command

if TYPE_CHECKING:
    from torch import Tensor

LORA_FILE = "pytorch_lora_weights.safetensors"
DENOISER_FILES = tuple(f"{name}/diffusion_pytorch_model.safetensors" for name in DENOISERS)
"""Where the denoiser itself is trained, under the name that its pipeline has for it."""
WEIGHT_FILES = (LORA_FILE, *DENOISER_FILES)
AVERAGE_FOLDER = "ema"
OLD_FOLDER = "old"
FAKE_FOLDER = "fake"
OPTIMIZER_FILE = "optimizer.safetensors"
STATISTICS_FILE = "prompt_statistics.json"
TRAINER_FILE = "trainer.json"
MARKER_FILE = "complete.json"


class TrainerState(Record):
    """What a checkpoint is of."""

    format_version: int = FORMAT_VERSION
    run: str
    """Identity of the run."""
    number: Annotated[int, Field(ge=0)]
    """Iterations trained."""
    optimizer_steps: Annotated[int, Field(ge=0)]
    model_digest: str
    policy_digest: str
    """Of the file of the trained weights; `model_digest` where there is none."""
    teacher_digest: str | None = None
    """Of the pipeline that taught in the iteration before, where one did; absent where none did."""


def _check_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or {"..", "."} & {*name.split("/")} or re.search(r"[\\:\x00-\x1f]", name):
        raise ValueError("is not a name of a file in the folder")
    return name


class Marker(Record):
    """Digest and size of each other file of a checkpoint."""

    format_version: int
    files: dict[Annotated[str, AfterValidator(_check_name)], str]
    bytes: dict[str, Annotated[int, Field(ge=0)]]


class Statistics(Record):
    """The content of `prompt_statistics.json`, as a record: component → prompt → newest rewards."""

    components: dict[str, dict[str, tuple[Annotated[float, Field(allow_inf_nan=False)], ...]]]


def publish_checkpoint(
    layout: RunLayout,
    number: int,
    *,
    write_weights: Callable[[Path], None],
    model_digest: str,
    optimizer: Mapping[str, Tensor],
    optimizer_steps: int,
    statistics: Mapping[str, PromptStatistics],
    teacher_digest: str | None = None,
) -> TrainerState:
    """Publish a checkpoint; `write_weights` puts one of `WEIGHT_FILES`, or none, into the folder that it is given.

    What else it puts there is of the checkpoint too. Where another process published it first, that one stays: the
    same plan gives the same content. Raises `MissingFileError` where the run directory is gone.
    """
    path, run = layout.checkpoint(number), read_run_identity(layout)
    with publish_folder(path) as folder:
        with explain_safetensors():
            write_weights(folder)
            write_optimizer(folder, optimizer)
        (folder / STATISTICS_FILE).write_text(canonical_json(statistics), encoding="utf-8")
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        digests = {name: _digest(folder / name) for name in files}
        state = TrainerState(
            run=run,
            number=number,
            optimizer_steps=optimizer_steps,
            model_digest=model_digest,
            policy_digest=next((digest for name in WEIGHT_FILES if (digest := digests.get(name))), model_digest),
            teacher_digest=teacher_digest,
        )
        (folder / TRAINER_FILE).write_text(canonical_json(state.model_dump(exclude_none=True)), encoding="utf-8")
        digests[TRAINER_FILE] = _digest(folder / TRAINER_FILE)
        sizes = {name: (folder / name).stat().st_size for name in digests}
        marker = {"format_version": FORMAT_VERSION, "files": digests, "bytes": sizes}
        (folder / MARKER_FILE).write_text(canonical_json(marker), encoding="utf-8")
    return read_trainer_state(layout, number)


def write_optimizer(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an optimizer's tensors into a folder of a checkpoint."""
    import safetensors.torch

    safetensors.torch.save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / OPTIMIZER_FILE,
        metadata={METADATA_KEY: canonical_json({"format_version": FORMAT_VERSION})},
    )


def read_trainer_state(layout: RunLayout, number: int) -> TrainerState:
    """Read what a checkpoint is of, and check what draws images with it: its weights, and their averages.

    Raises `MissingFileError`, `CorruptFileError`, `FormatVersionError` or `UnreadableFileError`, and
    `ForeignFileError` for the checkpoint of another run or number.
    """
    path = layout.checkpoint(number)
    remedy = REMEDY.format(path=path)
    # What is read is checked, also what nobody published.
    folders = (path, path / AVERAGE_FOLDER, path / OLD_FOLDER)
    weights = [file for folder in folders if (file := find_checkpoint_weights(folder))]
    marker = read_marker(layout, number)
    published = [name for name in marker.files if PurePosixPath(name).name in _WEIGHT_NAMES]
    _check_files(path, marker, {*published, TRAINER_FILE, *(file.relative_to(path).as_posix() for file in weights)})
    state = read_object(path / TRAINER_FILE, TrainerState, "trainer state", remedy)
    check_owner(state.run, layout, path, remedy)
    if state.number != number:
        raise ForeignFileError(f"{path}: is checkpoint {state.number}; {remedy}")
    own = find_checkpoint_weights(path)
    if own is not None and marker.files[own.relative_to(path).as_posix()] != state.policy_digest:
        raise CorruptFileError(f"{path / TRAINER_FILE}: states the digest of other weights; {remedy}")
    if own is None and state.policy_digest != state.model_digest:
        raise CorruptFileError(f"{path}: lacks its trained weights; {remedy}")
    return state


def check_checkpoint(layout: RunLayout, number: int) -> None:
    """Check every file of a checkpoint. Raises as `read_trainer_state`."""
    read_trainer_state(layout, number)
    marker = read_marker(layout, number)
    _check_files(layout.checkpoint(number), marker, {*marker.files, *_ALWAYS})
    read_stored(layout.checkpoint(number) / OPTIMIZER_FILE)
    read_statistics(layout, number)


def read_marker(layout: RunLayout, number: int) -> Marker:
    """Read the digests of a checkpoint's files. Raises `MissingFileError` or `CorruptFileError`."""
    path = layout.checkpoint(number)
    if not path.is_dir():
        raise MissingFileError(
            f"{path}: no such checkpoint; `{command('inspect', layout.root)}` lists those there are"
        )
    remedy = REMEDY.format(path=path)
    try:
        return read_object(path / MARKER_FILE, Marker, "marker of a checkpoint", remedy)
    except MissingFileError:
        # A checkpoint is whole or not there, so the remedy is for its folder, not for the file.
        raise CorruptFileError(f"{path / MARKER_FILE}: is gone or no JSON object; {remedy}") from None


def parse_marker(content: bytes, path: Path) -> Marker:
    """Check the content of a marker, of the checkpoint at a path. Raises `CorruptFileError`."""
    remedy = REMEDY.format(path=path)
    values = parse_object(content, path / MARKER_FILE, remedy)
    return parse_record(values, Marker, path / MARKER_FILE, "marker of a checkpoint", remedy)


def damaged_files(folder: Path) -> list[str]:
    """List the files that a checkpoint's marker names and that are not as they were published."""
    marker = read_object(folder / MARKER_FILE, Marker, "marker of a checkpoint", REMEDY.format(path=folder))
    return [name for name in marker.files if not _is_published(folder, marker, name)]


def _check_files(path: Path, marker: Marker, names: Iterable[str]) -> None:
    for name in sorted(names):
        if not _is_published(path, marker, name):
            raise CorruptFileError(f"{path / name}: is not the file that was published; {REMEDY.format(path=path)}")


def _is_published(path: Path, marker: Marker, name: str) -> bool:
    recorded = marker.files.get(name)
    return recorded is not None and recorded == _digest(path / name, marker.bytes.get(name, -1))


def find_checkpoint_weights(folder: Path) -> Path | None:
    """Find the file of trained weights in a checkpoint's folder or that of its average; None: there is none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def is_whole_denoiser(path: Path) -> bool:
    """Return whether a file of weights, by its path, is a whole denoiser's, and not a LoRA."""
    return any(path.match(name) for name in DENOISER_FILES)


def read_weights(layout: RunLayout, number: int) -> dict[str, Tensor]:
    """Read the trained tensors, under diffusers' names, of a checkpoint that was checked as above.

    Empty where it is the base model itself.
    """
    file = find_checkpoint_weights(layout.checkpoint(number))
    return read_safetensors(file) if file else {}


def read_average(layout: RunLayout, number: int, folder: str = AVERAGE_FOLDER) -> dict[str, Tensor] | None:
    """Read an average of the trained tensors as `read_weights` does; None: the checkpoint has none.

    `folder`: `AVERAGE_FOLDER`, `OLD_FOLDER`, or `FAKE_FOLDER`, whose LoRA is the teacher's.
    """
    file = find_checkpoint_weights(layout.checkpoint(number) / folder)
    return read_safetensors(file) if file else None


def find_drawing_digest(layout: RunLayout, state: TrainerState) -> str:
    """Return the digest of the weights that draw with a checkpoint: of the old policy's, where it has some.

    Raises as `read_marker`.
    """
    path = layout.checkpoint(state.number)
    file = find_checkpoint_weights(path / OLD_FOLDER)
    if file is None:
        return state.policy_digest
    return read_marker(layout, state.number).files[file.relative_to(path).as_posix()]


def read_optimizer(layout: RunLayout, number: int, folder: str = "") -> dict[str, Tensor]:
    """Read the optimizer's tensors of a checkpoint, or of a folder in it.

    Raises `CorruptFileError` where they are not as published.
    """
    path, file = layout.checkpoint(number), (PurePosixPath(folder) / OPTIMIZER_FILE).as_posix()
    _check_files(path, read_marker(layout, number), [file])
    return read_safetensors(path / file)


def read_statistics(layout: RunLayout, number: int) -> dict[str, PromptStatistics]:
    """Read the prompt statistics of a checkpoint by component of the reward.

    Raises `CorruptFileError` where they are not as published.
    """
    path = layout.checkpoint(number)
    _check_files(path, read_marker(layout, number), [STATISTICS_FILE])
    file = path / STATISTICS_FILE
    values: dict[str, Any] = {"components": read_json(file)}
    return dict(parse_record(values, Statistics, file, "prompt statistics", REMEDY.format(path=path)).components)


def latest_checkpoint(layout: RunLayout) -> int:
    """Number of the newest checkpoint. Raises `MissingFileError` where there is none."""
    checkpoints = layout.checkpoints()
    if not checkpoints:
        start = command("sample", "--task", "NAME", "--run", layout.root)
        raise MissingFileError(f"{layout.root}: holds no run yet; start one with `{start}` or `rlcm loop`")
    return checkpoints[-1]


def digest_safetensors(path: Path) -> str:
    """Digest a safetensors file over its tensors and canonical metadata, as `digest_tensors` does.

    safetensors writes several metadata keys in random order, so the bytes of diffusers' LoRA files are not
    canonical. Raises `CorruptFileError`, and the errors of `open_file`.
    """
    tensors, metadata = read_stored(path)
    return digest_contents(
        (
            (name, f"torch.{DTYPES[tensor.dtype]}", tensor.shape, tensor.data)
            for name, tensor in sorted(tensors.items())
        ),
        metadata,
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file. Raises `CorruptFileError`, and the errors of `open_file`."""
    import safetensors.torch

    with open_file(path, NO_TENSORS):
        try:
            return safetensors.torch.load_file(path)
        # Besides its own error, safetensors lets through what torch says of an extent.
        except (safetensors.SafetensorError, TypeError, OverflowError) as error:
            raise CorruptFileError(f"{path}: is not a readable safetensors file ({error})") from None


_ALWAYS = (OPTIMIZER_FILE, STATISTICS_FILE, TRAINER_FILE)
_WEIGHT_NAMES = tuple(PurePosixPath(name).name for name in WEIGHT_FILES)


def _digest(file: Path, size: int | None = None) -> str | None:
    """Digest a file of a checkpoint; None where it is not there, is not a file, or has another size."""
    try:
        with open_file(file) as stream:
            if size is not None and size != stream.seek(0, 2):
                return None
            if file.name in _WEIGHT_NAMES:
                return digest_safetensors(file)
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (MissingFileError, CorruptFileError):
        return None
