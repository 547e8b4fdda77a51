"""Whether the embedded pipelines are the ones that were shipped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rlcm_cli.models.embedded import EMBEDDED, embedded_folder

SHIPPED = {
    "emoji-lcm": "a3798968ef928f5e1148988ca45214f8ff0dc4342ab22f3cd7299cf7ff5d867f",
    "emoji-diffusion": "980e1b5747bba792fd6aa2613a6580f05de41f9160b72d2d6fedf6fbd11343f4",
    "emoji-sprint": "8e044c4dfaf81bd4e28015067b02e41a2a4991fc688eee2b34ed026f69e4c958",
    "emoji-sana": "8e50409dca87e8c25001cdcd87bc2ee2ee0850abcad40246b2fc582e9843bb88",
}
"""SHA-256 of what a pipeline is loaded from, as `digest_folder` gives it."""


def digest_folder(folder: Path) -> str:
    """Digest the weights and settings of a pipeline's folder; not how its JSON is laid out, which checkouts change."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if file.suffix not in (".safetensors", ".json"):
            continue
        content = file.read_bytes()
        if file.suffix == ".json":
            content = json.dumps(json.loads(content), sort_keys=True).encode()
        digest.update(file.relative_to(folder).as_posix().encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def find_damaged() -> list[str]:
    """Return the names of the embedded pipelines that lack something or hold something else than was shipped."""
    damaged = []
    for name in EMBEDDED:
        folder = embedded_folder(name)
        try:
            whole = folder is not None and digest_folder(folder) == SHIPPED[name]
        except (OSError, ValueError):
            whole = False
        if not whole:
            damaged.append(name)
    return damaged
