"""Where the recipe reads and writes."""

from __future__ import annotations

from pathlib import Path

RECIPE = Path(__file__).resolve().parent
ROOT = RECIPE.parents[1]
WORK = ROOT / "build" / "emoji_sprint"
EMBEDDED = ROOT / "rlcm_cli" / "models" / "embedded" / "emoji-sprint"
"""The finished pipeline, whose tokenizer, text encoder and autoencoder a build begins with."""
