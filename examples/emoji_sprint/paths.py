"""Where the recipe reads and writes."""

from __future__ import annotations

from pathlib import Path

RECIPE = Path(__file__).resolve().parent
ROOT = RECIPE.parents[1]
WORK = ROOT / "build" / "emoji_sprint"
STAGES = RECIPE / "stages"
"""Finished stages that a build begins with, such as `text_encoder/`."""
