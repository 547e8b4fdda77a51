"""A copy of the package with new files in it, and the program that it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import rlcm_cli

PACKAGE = Path(rlcm_cli.__file__).parent


def extend_package(folder: Path, files: Mapping[str, str]) -> Callable[..., str]:
    """Copy the package into a folder with new files, ROOM/MODULE.py → text; return what runs Python beside it.

    Rooms that get no file are links. `run(*words, status=0)` returns what the process printed, on both streams.
    """
    copy = folder / "rlcm_cli"
    copy.mkdir(parents=True)
    rooms = {file.partition("/")[0] for file in files}
    for entry in PACKAGE.iterdir():
        if entry.name in rooms:
            shutil.copytree(entry, copy / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif entry.name != "__pycache__":
            (copy / entry.name).symlink_to(entry)
    for file, text in files.items():
        assert not (copy / file).exists(), file
        (copy / file).write_text(text, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}

    def run(*words: object, status: int = 0) -> str:
        command = [sys.executable, *map(str, words)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
        assert ended.returncode == status, ended.stderr
        return ended.stdout + ended.stderr

    return run


def extend_program(folder: Path, files: Mapping[str, str]) -> Callable[..., str]:
    """Do as `extend_package`; what is returned runs `rlcm`."""
    run = extend_package(folder, files)
    return lambda *words, status=0: run("-m", "rlcm_cli", *words, status=status)
