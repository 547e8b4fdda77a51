"""Format version 1 of the run directory: records, receipts, and what a reader checks.

A run directory is read with only a JSON parser and the `safetensors` package. MUST, MUST NOT and MAY are
those of RFC 2119.

 1. A RECORD is a safetensors file `NAME.safetensors` with a RECEIPT `NAME.json` next to it.
 2. The receipt is published after the record. A record without a receipt does not count.
 3. A receipt is a JSON object: `format_version`, `kind`, `sha256` and `bytes` of the record file, `rows`
    (samples in the record). A reader MUST compare size and SHA-256 before it uses a record.
    What has the name of a file may be something else, such as a pipe, or of any size: a reader MUST NOT wait for it.
 4. The `__metadata__` of a record has exactly one key, `rlcm`, whose value is canonical JSON (sorted keys,
    no spaces, UTF-8): `format_version`, `kind` and the fields below.
 5. A reader MUST refuse a `format_version` above its own, another `kind`, a record whose `plan` is not the
    digest of the manifest in whose folder it lies, and a file whose `run` or number is not that of its folder.
    `run` is stated by `config.json`: the SHA-256 of the canonical JSON of its `config` without the sections that
    may change, `runtime`, `monitor` and `ray`, and without `evaluate.every`. `inputs.json`, plans,
    checkpoints, evaluations and metrics repeat it, because nothing else reveals a copied folder or an edited
    configuration.
 6. `manifest.json` of a rollout is canonical JSON; `plan` is the SHA-256 of its bytes. Shard k holds the
    samples of `shards[k]` = [start, stop). A group (the `group_size` images of one prompt that were sampled
    together) never crosses a shard.
 7. Kind `rollout`: `rollouts/IIIIII/shard-KKKKK-of-NNNNN.safetensors`; fields `plan`, `prompts` (each once),
    `tasks` (each once). Tensors, for B samples, S states, A actions, U unique prompts:

        latents          [B, S, C, h, w]  float    states, as they were fed to the model
        log_probs        [B, A]           float32  of the actions, under the policy that sampled them
        timesteps        [A, 2]           int64    (timestep, next timestep) of each action; float64 where a
                                                   sampler's times are not whole numbers
        final_latents    [B, C, h, w]     float    state H, which was decoded; present only where the manifest's
                                                   `final_latents` is true
        images           [B, 3, H, W]     uint8    decoded after the last model call, RGB
        sample_index     [B]              int64    position in the iteration
        group_id, member [B]              int64    group in the iteration, and position in the group
        seed             [B]              int64    of the sample's own noise generator (`core.noise.seed_generator`)
        prompt_index, task_index [B]      int64    into `prompts` and `tasks`
        conditioning.X   [U, …]           any      what the model was conditioned on, by name; where texts differ in
                                                   length, the shorter ones are padded with zeros
        conditioning_index.X [B]          int64    row of `conditioning.X` of each sample

    Of the H model calls in the manifest's `schedule`, those with a `std` above 0 are the actions, in their order; they
    may be a window in the middle. Call c turns state c into state c + 1, and state H is decoded. `latents` has states
    c and c + 1 of each action, and state H − 1: each once, in their order. Where every call but the last is an action,
    these are 0 to H − 1; where every call is, 0 to H.

 8. Kind `rewards`: `rewards/<slug>-<digest>/` in the rollout's folder, one record per shard, under the shard's
    name; fields `plan`, `shard_sha256` (the scored shard), `reward` (`name`, `settings`, `digest` of both, which
    the folder's name repeats, and `revision`, a digest of the weights, code or service that scored, the same
    in all shards). Tensors `sample_index` int64 [B] and `reward` float32 [B], finite. A reward that only some of
    the tasks are trained for scores only their samples. `rewards/<slug>-<digest>-vN-XXXXXXXX/` holds the same
    for a later version of the reward's weights, code or service: `store/reward_versions.py`.
 9. Kind `evaluation`: `evaluations/NNNNNN/evaluation.safetensors`; fields `run`, `checkpoint`,
    `policy_digest`, `prompts`, `tasks`. Tensors `images`, `prompt_index`, `task_index`, `seed` as above,
    `held_out` uint8 [B] (prompt kept out of training), `reward.NAME` float32 [B], NaN where the sample's task
    does not have it; field `revisions`: NAME → `revision` as above, then `-` and the digest where a reward that is
    not trained for has settings other than its defaults. Kind `rescored`: `rescored-NNNNN.safetensors` next to it,
    from 1; tensors `seed` and `reward.NAME` by rewards that scored later, which replace those above; fields
    `checkpoint`, `evaluation_sha256` (the scored images) and `revisions`.
10. Records are immutable. A record that fails a check MUST NOT be used and MUST NOT be deleted: it MAY be
    moved to `quarantine/`, after which its phase regenerates it.
11. Checkpoints are folders that appear by one rename; `complete.json`, written last, holds `files`, the digest of
    each file (of trained weights over their tensors), and `bytes`, the size of each. `trainer.json` states `run`
    and `number`, and `teacher_digest` only where another pipeline taught.
12. `metrics/NNNNNN.json` states `run`, `checkpoint` (NNNNNN), `iteration` (one less), and `digest`, the SHA-256 of
    the canonical JSON of all its other members, because nothing else has a digest of it.
13. What was removed on purpose is listed in `pruned.json`: `rollouts` and `checkpoints`, their numbers.
14. Names that begin with a dot and end in `.tmp` are not part of the format.
15. `votes/VVVVVVVV/NNNNNN.json` is what a voter (VVVVVVVV, random) said of two images, the votes numbered from 0:
    `run`, `voter`, `number`, `left` and `right` (each `record`, the SHA-256 of the record that holds the image, and
    `row`), and `answer`: left, right, tie or skip. Of a voter's votes on the same two images the last one counts.
    Scores made of them are rewards of the name `votes`; those made again, of more votes, are a later version.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
from pydantic import Field, ValidationError

from rlcm_cli.core.digests import canonical_json, sha256
from rlcm_cli.errors import CorruptFileError, ForeignFileError, MissingFileError
from rlcm_cli.store.atomic import publish_bytes, replace_file
from rlcm_cli.store.layout import FORMAT_VERSION, receipt_path
from rlcm_cli.store.reading import REMEDY, Record, check_version, open_file, parse_json, read_object
from rlcm_cli.store.specification import Kind, TensorInfo, find_fault, find_wrong_value
from rlcm_cli.store.tensor_file import parse_header

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

METADATA_KEY = "rlcm"


class Receipt(Record):
    """What was published, for a reader to hold the file against."""

    format_version: int
    kind: Kind
    sha256: str
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0)


def publish_record(path: Path, kind: Kind, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> Receipt:
    """Publish tensors with their metadata fields, then the receipt; return the receipt that is there in the end.

    What another process published first stays. A record without a receipt is one whose writer died between the two,
    or is still at it: unless it is the same, it is written again.
    """
    import safetensors.torch  # here: whoever reads only receipts and metrics does not wait for torch

    header = canonical_json({**fields, "format_version": FORMAT_VERSION, "kind": kind})
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous, metadata={METADATA_KEY: header})
    receipt = Receipt(
        format_version=FORMAT_VERSION, kind=kind, sha256=sha256(data), bytes=len(data), rows=_rows(contiguous)
    )
    if is_published(path):
        return read_receipt(path)
    if not publish_bytes(path, data) and not _is_record_of(receipt, path):
        with replace_file(path) as new:
            new.write_bytes(data)
            if is_published(path):  # meanwhile: its writer lives, and its values may differ from ours
                new.unlink()
    # A writer that comes late finds the other's receipt, for the other's record.
    return receipt if publish_bytes(receipt_path(path), encode_receipt(receipt)) else read_receipt(path)


def restore_receipt(path: Path) -> tuple[Receipt, dict[str, Any]] | None:
    """Make the receipt of a record whose writer died before it did, and return its fields; None: the record is cut."""
    import safetensors.torch

    try:
        data = path.read_bytes()
        fields, _ = _read_header(data, path)
        tensors = safetensors.torch.load(data)  # refuses a file that was cut
        receipt = Receipt(
            format_version=fields["format_version"],
            kind=fields["kind"],
            sha256=sha256(data),
            bytes=len(data),
            rows=_rows(tensors),
        )
    except (ForeignFileError, safetensors.SafetensorError, ValidationError, KeyError):
        return None
    return receipt, fields


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the canonical bytes."""
    return canonical_json(receipt.model_dump()).encode()


def _is_record_of(receipt: Receipt, path: Path) -> bool:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == receipt.sha256


def is_published(path: Path) -> bool:
    """Return whether a record is there, as rule 2 has it."""
    return receipt_path(path).exists()


def read_receipt(path: Path) -> Receipt:
    """Read the receipt of a record. Raises `MissingFileError`, `CorruptFileError` or `FormatVersionError`."""
    return read_object(receipt_path(path), Receipt, "receipt", REMEDY.format(path=path))


def read_record(path: Path, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a record's tensors and metadata fields, after the checks of rules 3 to 5 (the plan is the caller's).

    They are those that its kind has, by name, dtype and shape, and its indices point to something. Raises
    `MissingFileError`, `CorruptFileError`, `ForeignFileError`, `FormatVersionError` or `UnreadableFileError`.
    """
    tensors, fields, _ = _read_record(path, kind, "pt", lambda name, info: True)
    return tensors, fields


def read_arrays(
    path: Path, kind: Kind, names: Collection[str] | None = None, *, left_out: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a record as `read_record` does, into NumPy arrays and without torch.

    `names`: the tensors to read, with all indices; None: all but those that are left out. NumPy has no bfloat16,
    which latents and conditioning may be stored in.
    """
    arrays, fields, _ = _read_record(
        path,
        kind,
        "np",
        lambda name, info: name not in left_out if names is None else name in names or _is_index(name, info),
    )
    return arrays, fields


def check_record(
    path: Path, kind: Kind, names: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, TensorInfo]]:
    """Check a record as `read_record` does, without torch; return arrays, fields, and what its tensors are.

    The arrays are those of `names`, and all indices. Raises as `read_record`.
    """
    return _read_record(path, kind, "np", lambda name, info: name in names or _is_index(name, info))


def _is_index(name: str, info: TensorInfo) -> bool:
    """Return whether a tensor may hold indices or flags of samples."""
    return info.dtype in ("I64", "U8") and len(info.shape) == 1


def _read_record(
    path: Path, kind: Kind, framework: Literal["pt", "np"], wanted: Callable[[str, TensorInfo], bool]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, TensorInfo]]:
    """Read a record's fields, the tensors that are wanted, indices among them, and its header."""
    receipt, remedy = read_receipt(path), REMEDY.format(path=path)
    try:
        fields, infos = _check_file(path, receipt)
    except MissingFileError:
        raise MissingFileError(
            f"{path}: has a receipt but is gone; if it was pruned, its iteration is done, else {remedy}"
        ) from None
    check_version(fields.get("format_version"), path)
    if fields.get("kind") != kind:
        raise ForeignFileError(
            f"{path}: holds a record of kind {str(fields.get('kind'))[:40]!r}, not {kind!r}; {remedy}"
        )
    fault = find_fault(kind, fields, infos)
    if fault is None:
        try:
            with safetensors.safe_open(path, framework=framework) as record:
                tensors = {name: record.get_tensor(name) for name, info in infos.items() if wanted(name, info)}
        except (safetensors.SafetensorError, OSError) as error:
            raise CorruptFileError(f"{path}: is not a readable safetensors file ({error}); {remedy}") from None
        fault = find_wrong_value(kind, fields, tensors)
    if fault is not None:
        raise ForeignFileError(f"{path}: cannot be read as {kind} record: {fault}; {remedy}")
    if _rows(tensors) != receipt.rows:
        raise CorruptFileError(
            f"{receipt_path(path)}: counts {receipt.rows} samples, the record holds {_rows(tensors)}; {remedy}"
        )
    return tensors, fields, infos


def _check_file(path: Path, receipt: Receipt) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Compare a record with its receipt, and read its header."""
    remedy = REMEDY.format(path=path)
    with open_file(path) as file:
        size = file.seek(0, 2)
        if size != receipt.bytes:
            raise CorruptFileError(
                f"{path}: has {size} bytes, its receipt says {receipt.bytes}: truncated or overwritten; {remedy}"
            )
        if not size:  # which cannot be mapped
            raise ForeignFileError(f"{path}: is not a record of this toolkit: it is empty; {remedy}")
        # Mapped, not read: of large shards the copies into fresh memory cost more than the checksum.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if hashlib.sha256(data).hexdigest() != receipt.sha256:
                raise CorruptFileError(f"{path}: its SHA-256 is not the receipt's: a flipped bit or an edit; {remedy}")
            return _read_header(data, path)


def _rows(tensors: Mapping[str, Any]) -> int:
    """Count the samples of a record."""
    return len(tensors["sample_index" if "sample_index" in tensors else "seed"])


def _read_header(data: bytes | mmap.mmap, path: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Read the fields of a record, and what its header says of each tensor."""
    remedy = REMEDY.format(path=path)
    try:
        header, _ = parse_header(data)
        fields = parse_json(header.pop("__metadata__", {})[METADATA_KEY])
        infos = {
            name: TensorInfo(str(entry["dtype"]), tuple(int(extent) for extent in entry["shape"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ForeignFileError(
            f"{path}: is not a record of this toolkit (no '{METADATA_KEY}' metadata); {remedy}"
        ) from None
    if not isinstance(fields, dict):
        raise ForeignFileError(f"{path}: its '{METADATA_KEY}' metadata is not an object; {remedy}")
    return fields, infos
