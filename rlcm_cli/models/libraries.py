"""How diffusers and transformers speak: little while they load, in one line when they fail."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what the libraries log at each load of a small pipeline, none of which a user can act on."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    # Loaders of diffusers log the whole text of an error, and then raise it.
    wanted = {diffusers_logging: logging.CRITICAL, transformers_logging: logging.ERROR}
    levels = {library: library.get_verbosity() for library in wanted}
    # peft imports it where it is installed, and some processors miss a kernel there that nothing here uses.
    other = logging.getLogger("bitsandbytes")
    others_level = other.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library, level in wanted.items():
            _set_verbosity(library, level)
            library.disable_progress_bar()
        if others_level != logging.ERROR:
            other.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for library, level in levels.items():
                _set_verbosity(library, level)
            if others_level != logging.ERROR:
                other.setLevel(others_level)


def _set_verbosity(library: ModuleType, level: int) -> None:
    # Within another quiet block there is nothing to set, and to set a level empties the caches of all loggers.
    if library.get_verbosity() != level:
        library.set_verbosity(level)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says something, shortened."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
