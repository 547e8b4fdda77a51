"""Where the recipe reads and writes, and the few file helpers that every stage shares."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

RECIPE = Path(__file__).resolve().parent
ROOT = RECIPE.parents[1]
LCM = ROOT / "rlcm_cli" / "models" / "embedded" / "emoji-lcm"
TEACHER = ROOT / "rlcm_cli" / "models" / "embedded" / "emoji-diffusion"
JUDGE = ROOT / "rlcm_cli" / "rewards" / "emoji_judge"
CLIP = ROOT / "rlcm_cli" / "rewards" / "emoji_clip"
CLASSIFIER = RECIPE / "classifier"
WORK = ROOT / "build" / "emoji_lcm"


def replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder beside `target`, then put it in the place of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    write(fresh)
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """Put a copy of `source` in the place of `target`."""
    replace_folder(target, lambda fresh: shutil.copytree(source, fresh, dirs_exist_ok=True))
