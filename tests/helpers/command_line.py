"""Helpers of the command-line tests: run `rlcm` in this process, and look at what it printed and wrote."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from rlcm_cli.cli.app import main
from rlcm_cli.errors import RlcmError

LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    def json_line(self) -> Any:
        """The only line on stdout, as strict JSON."""
        (line,) = self.out.splitlines()
        return json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def rlcm(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run `rlcm ARGUMENTS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return Outcome(leaving.value.code or 0, printed.out, printed.err)


def succeed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run `rlcm ARGUMENTS`, which must succeed."""
    outcome = rlcm(capsys, *arguments)
    assert outcome.status == 0, outcome.err
    return outcome


def refuse(
    capsys: pytest.CaptureFixture[str],
    error: type[RlcmError],
    *arguments: object,
    saying: tuple[str, ...],
    notes: int = 0,
) -> str:
    """Run `rlcm ARGUMENTS`, which must end with one line on stderr and the exit status of `error`; give the line.

    `notes`: lines before it that tell what followed from what was set.
    """
    outcome = rlcm(capsys, *arguments)
    assert outcome.status == error.exit_code, outcome
    *told, line = outcome.err.splitlines()
    assert [one.partition(": ")[0] for one in told] == ["note"] * notes
    assert line.startswith("rlcm: ")
    for words in saying:
        assert words in line
    return line


def write_settings(folder: Path, model: Path, **sections: Any) -> Path:
    """Write a TOML file for --config that trains the tiny model in a fraction of a second an iteration."""
    values: dict[str, Any] = {
        "task": "compression",
        "model": {"name": str(model)},
        "prompts": {"source": "simple_animals"},
        "rewards": {"compressibility": 1.0},
        "sampler": {"spacing": "diffusers"},
        "sample": {
            "samples": 4,
            "batch_size": 2,
            "shards": 2,
            "steps": 3,
            "guidance_scale": 4.0,
        },
        "train": {"learning_rate": 1e-3, "minibatch_size": 4, "buffer_size": 4, "min_count": 2},
        "lora": {"rank": 2, "alpha": 4},
        "evaluate": {"prompts": 3, "images_per_prompt": 1},
        "runtime": {"iterations": 2, "device": "cpu", "micro_batch_size": 8},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    lines = [f"task = {json.dumps(values.pop('task'))}"]
    for name, section in values.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    path = folder / "settings.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, str]:
    """Digest every file of a folder by its relative path, but for those that say how long a phase took."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "timings" not in file.parts
    }


def tensor_files(folder: Path) -> dict[str, str]:
    """Digest the tensors of every safetensors file of a folder; a LoRA's metadata has no fixed order of keys."""
    digests = {}
    for file in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256()
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                tensor = opened.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
            digest.update(json.dumps(dict(sorted(opened.metadata().items()))).encode())
        digests[str(file.relative_to(folder))] = digest.hexdigest()
    return digests


def checkpoints(run: Path) -> list[int]:
    """Numbers of the checkpoints of a run."""
    return sorted(int(folder.name) for folder in (run / "checkpoints").iterdir())
