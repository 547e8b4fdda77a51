"""Where this machine keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$RLCM_CACHE, else $XDG_CACHE_HOME/rlcm, else ~/.cache/rlcm."""
    own = os.environ.get("RLCM_CACHE")
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else shared / "rlcm"


def stages_folder() -> Path:
    """$RLCM_STAGE, else `stages` in the cache: local copies of what is in use of runs on object storage."""
    own = os.environ.get("RLCM_STAGE")
    return Path(own) if own else cache_folder() / "stages"
