"""What the user of this machine has named or allowed before, so that it need not be named again.

A file each in the folder `trust` of the cache, named by the SHA-256 of what is trusted. Removing the folder takes all
of it back.
"""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.core.digests import sha256
from rlcm_cli.errors import StorageFullError
from rlcm_cli.store.cache import cache_folder


def trust_folder() -> Path:
    """Folder of what is trusted."""
    return cache_folder() / "trust"


def is_trusted(*parts: str) -> bool:
    """Return whether something was trusted on this machine before."""
    return _file(parts).is_file()


def trust(*parts: str) -> bool:
    """Trust something from now on; False: it was trusted before. Raises `StorageFullError`."""
    file = _file(parts)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageFullError(
            f"{file.parent}: what is trusted cannot be kept there ({error.strerror}); set RLCM_CACHE to another folder"
        ) from None
    return True


def _file(parts: tuple[str, ...]) -> Path:
    return trust_folder() / sha256("\0".join(parts).encode("utf-8", "surrogatepass"))
