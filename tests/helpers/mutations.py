"""Changes to a file of a run, by accident or with intent, drawn from a seed."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rlcm_cli.core.digests import canonical_json, digest_json, sha256
from rlcm_cli.store.checkpoint import LORA_FILE, MARKER_FILE, digest_safetensors
from rlcm_cli.store.identity import identify_run

DEEP = ("[" * 3000 + "]" * 3000, '{"a":' * 400 + "1" + "}" * 400)
NOT_JSON = (*DEEP, "9" * 5000, "NaN", "-Infinity", "1e999", r'"\ud800"')
TEXTS = ("", "x", "../../x", "\x1b[31m", "y" * 5000)
VALUES = (None, True, -1, 0, 1, 2**40, 2**63, 0.5, -1e300, *TEXTS, [], {}, [1], {"a": 1})
SETTLED = ("runtime", "monitor", "ray")
NAMES = ("1000000000000", "1" * 26, "000000 ", "-00001", "٠٠٠٠٠١", "x\x1b[31m", "00001", "0000001", "999999")


@dataclass(frozen=True)
class Mutation:
    """One change to a run's directory."""

    kind: str
    place: str
    """The file or folder, by its path in the run."""
    act: Callable[[Path], object]
    """Changes the run whose root it is given."""
    forged: bool = False
    """Digests fit what was changed, so that nobody can know it for damage."""


def draw_mutations(seed: int, count: int, run: Path, other: Path) -> Iterator[Mutation]:
    """Draw changes to a run; `other` is one of another seed. Each kind of file comes as often as any other."""
    draw = random.Random(seed)  # noqa: S311
    kinds: dict[str, list[str]] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = file.relative_to(run).as_posix()
        kinds.setdefault(name_kind(name), []).append(name)
    makers = {
        "flip": _flip,
        "cut": _cut,
        "append": _append,
        "zero": _zero,
        "header": _header,
        "gone": _gone,
        "swap": lambda draw, name, run: _swap(draw, name, other),
        "move": _move,
        "json": _edit_json,
        "forged json": _forge_json,
        "forged tensors": _forge_tensors,
        "other kind": _other_kind,
        "folder": lambda draw, name, run: _move_folder(draw, name, run, other),
        "name": _rename,
    }
    made = 0
    while made < count:
        name = draw.choice(kinds[draw.choice(sorted(kinds))])
        kind = draw.choice(sorted(makers))
        act = makers[kind](draw, name, run)
        if act is not None:
            made += 1
            yield Mutation(kind, name, act, forged=kind in ("header", "forged json", "forged tensors"))


def name_kind(name: str) -> str:
    """Give the kind of a file: its path without numbers."""
    parts = name.split("/")
    if parts[0] == "timings":
        return "timing"
    if parts[0] == "rollouts":
        ending = parts[-1].rpartition(".")[2]
        return f"{'rewards' if 'rewards' in parts else parts[-1].split('-')[0]} {ending}"
    return parts[0] if len(parts) == 1 else f"{parts[0]} {parts[-1] if parts[0] != 'metrics' else ''}"


def write(file: Path, data: bytes) -> None:
    """Write a file again: what was there may be shared with the run that is copied."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def _flip(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    data = bytearray((run / name).read_bytes())
    if not data:
        return None
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return lambda root: write(root / name, bytes(data))


def _cut(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    data = (run / name).read_bytes().rstrip()
    kept = draw.choice([0, 1, 7, 8, 9, draw.randrange(max(1, len(data))), len(data) - 1])
    return lambda root: write(root / name, data[: max(0, kept)])


def _append(draw: random.Random, name: str, run: Path) -> Callable[[Path], object]:
    data = (run / name).read_bytes() + draw.choice([b"\0", b"{}", b"\xff" * 9, draw.randbytes(3000)])
    return lambda root: write(root / name, data)


def _zero(draw: random.Random, name: str, run: Path) -> Callable[[Path], object]:
    data = bytearray((run / name).read_bytes())
    start = draw.randrange(max(1, len(data)))
    data[start : start + draw.choice([1, 64, 4096])] = bytes(len(data[start : start + 64]) or 1)
    return lambda root: write(root / name, bytes(data))


def _header(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    if not name.endswith(".safetensors"):
        return None
    size = draw.choice([0, 2, 2**31, 2**63, 2**64 - 1, draw.randrange(2**20)])
    data = struct.pack("<Q", size) + (run / name).read_bytes()[8:]

    def act(root: Path) -> None:
        write(root / name, data)
        _refresh(root, name)

    return act


def _gone(draw: random.Random, name: str, run: Path) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def _swap(draw: random.Random, name: str, other: Path) -> Callable[[Path], object] | None:
    pair = [name]
    if name.startswith(("rollouts", "evaluations")) and not name.endswith("manifest.json"):
        pair = [str(Path(name).with_suffix(suffix)) for suffix in (".json", ".safetensors")]
    if not all((other / file).exists() for file in pair):
        return None
    return lambda root: [write(root / file, (other / file).read_bytes()) for file in pair]


def _move(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    alike = [path for path in sorted(run.rglob(f"*{Path(name).suffix}")) if path != run / name and path.is_file()]
    if not alike:
        return None
    source = draw.choice(alike).relative_to(run)

    def act(root: Path) -> None:
        write(root / name, (run / source).read_bytes())
        receipt = Path(name).with_suffix(".json")
        if name.endswith(".safetensors") and (run / source.with_suffix(".json")).exists():
            write(root / receipt, (run / source.with_suffix(".json")).read_bytes())

    return act


def _edit_json(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    if not name.endswith(".json"):
        return None
    if draw.random() < 0.3:
        text = (run / name).read_text()
        word = draw.choice(NOT_JSON)
        at = [index for index, letter in enumerate(text) if letter == ":"]
        place = draw.choice(at) if at else 0
        end = min(
            index for index in (*range(place + 1, len(text)), len(text)) if text[index : index + 1] in (",", "}", "")
        )
        changed = f"{text[: place + 1]} {word}{text[end:]}"
        return lambda root: write(root / name, changed.encode())
    values = _edit(draw, json.loads((run / name).read_text()))
    return lambda root: write(root / name, json.dumps(values).encode())


def _edit(draw: random.Random, values: Any) -> Any:
    """Change one value somewhere in a tree."""
    place = values
    while isinstance(place, dict | list) and place:
        key = draw.choice(sorted(place) if isinstance(place, dict) else list(range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8:
            place = place[key]
            continue
        if isinstance(place, dict) and draw.random() < 0.2:
            del place[key]
        elif isinstance(place, dict) and draw.random() < 0.1:
            place["an unknown key"] = draw.choice(VALUES)
        else:
            place[key] = draw.choice([value for value in VALUES if value != place[key]])
        break
    return values


def _forge_json(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    change = _edit_json(draw, name, run)

    def act(root: Path) -> None:
        assert change is not None
        change(root)
        _refresh(root, name)

    return None if change is None else act


def _forge_tensors(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    if not name.endswith(".safetensors"):
        return None
    with safetensors.safe_open(run / name, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if not tensors:
        return None
    key = draw.choice(sorted(tensors))
    tensor = tensors[key]
    match draw.choice(["drop", "rename", "dtype", "shape", "values", "empty", "add", "scalar", "field"]):
        case "drop":
            del tensors[key]
        case "rename":
            tensors["renamed"] = tensors.pop(key)
        case "dtype":
            tensors[key] = tensor.to(draw.choice([torch.int16, torch.float64, torch.bool, torch.float8_e4m3fn]))
        case "shape":
            tensors[key] = tensor.reshape(-1)[: max(1, tensor.numel() - 1)].clone()
        case "values":
            value = draw.choice([float("nan"), float("inf"), -1e30, 1e30, 7]) if tensor.is_floating_point() else 97
            tensors[key] = torch.full_like(tensor, value)
        case "empty":
            tensors[key] = tensor.reshape(-1)[:0].clone()
        case "add":
            tensors["more"] = torch.zeros(3)
        case "scalar":
            tensors[key] = torch.zeros((), dtype=tensor.dtype)
        case "field" if metadata and "rlcm" in metadata:
            metadata["rlcm"] = canonical_json(_edit(draw, json.loads(metadata["rlcm"])))
    data = safetensors.torch.save(tensors, metadata)

    def act(root: Path) -> None:
        write(root / name, data)
        _refresh(root, name)

    return act


def _refresh(root: Path, name: str) -> None:
    """Make the digests fit a file that was changed, as far as they are outside of it."""
    file, path = root / name, Path(name)
    if path.parts[0] == "checkpoints" and path.name != MARKER_FILE:
        marker = root.joinpath(*path.parts[:2], MARKER_FILE)
        values = json.loads(marker.read_text())
        try:
            digest = digest_safetensors(file) if path.name == LORA_FILE else sha256(file.read_bytes())
        except Exception:  # no safetensors file any more
            digest = sha256(file.read_bytes())
        inside = path.relative_to(Path(*path.parts[:2])).as_posix()
        values["files"][inside], values["bytes"][inside] = digest, file.stat().st_size
        trainer = marker.with_name("trainer.json")
        if path.name == LORA_FILE:
            state = {**json.loads(trainer.read_text()), "policy_digest": digest}
            write(trainer, canonical_json(state).encode())
            values["files"]["trainer.json"] = sha256(trainer.read_bytes())
            values["bytes"]["trainer.json"] = trainer.stat().st_size
        write(marker, canonical_json(values).encode())
    elif path.suffix == ".safetensors":
        receipt = file.with_suffix(".json")
        values = {**json.loads(receipt.read_text()), "sha256": sha256(file.read_bytes()), "bytes": file.stat().st_size}
        write(receipt, canonical_json(values).encode())
    elif name == "config.json" or path.parts[0] == "metrics":
        try:
            values = json.loads(file.read_text())
            if name == "config.json":
                values["run"] = identify_run(values["config"])
            else:
                values.pop("digest", None)
                values["digest"] = digest_json(values)
            write(file, json.dumps(values).encode())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # nothing to be sealed


def _other_kind(draw: random.Random, name: str, run: Path) -> Callable[[Path], object]:
    kind = draw.choice(["folder", "fifo", "socket", "itself", "zero", "null", "dangling", "full folder", "sparse"])

    def act(root: Path) -> None:
        file = root / name
        file.unlink()
        match kind:
            case "folder":
                file.mkdir()
            case "full folder":
                file.mkdir()
                (file / "file").write_bytes(b"x")
            case "fifo":
                os.mkfifo(file)
            case "socket":
                before = Path.cwd()
                os.chdir(file.parent)  # the path of a socket may have 107 characters
                try:
                    with socket.socket(socket.AF_UNIX) as server:
                        server.bind(file.name)
                finally:
                    os.chdir(before)
            case "itself":
                file.symlink_to(file.name)
            case "zero":
                file.symlink_to("/dev/zero")
            case "null":
                file.symlink_to("/dev/null")
            case "dangling":
                file.symlink_to("nowhere")
            case "sparse":
                with file.open("wb") as stream:
                    stream.truncate(2**40)

    return act


def _move_folder(draw: random.Random, name: str, run: Path, other: Path) -> Callable[[Path], object] | None:
    parts = Path(name).parts
    if parts[0] not in ("checkpoints", "evaluations", "rollouts", "metrics"):
        return None
    top = parts[0]
    numbers = sorted(path.name for path in (run / top).iterdir())
    source, foreign = draw.choice(numbers), draw.random() < 0.4
    ending = ".json" if top == "metrics" else ""
    target = draw.choice([*numbers, f"000002{ending}", f"000003{ending}"])
    link = draw.random() < 0.2 and not foreign
    if (source == target and not foreign) or (foreign and not (other / top / source).exists()):
        return None

    def act(root: Path) -> None:
        place = root / top / target
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        origin = (other if foreign else run) / top / source
        if link:
            place.symlink_to(source)
        elif origin.is_dir():
            shutil.copytree(origin, place)
        else:
            place.write_bytes(origin.read_bytes())

    return act


def _rename(draw: random.Random, name: str, run: Path) -> Callable[[Path], object] | None:
    path = Path(name)
    if len(path.parts) < 2:
        return None
    depth = draw.randrange(2, len(path.parts) + 1)
    source = Path(*path.parts[:depth])
    ending = source.suffix if depth == len(path.parts) else ""
    target = source.with_name(f"{draw.choice(NAMES)}{ending}")
    return lambda root: (root / source).rename(root / target)
