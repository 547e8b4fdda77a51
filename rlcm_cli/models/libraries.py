"""How diffusers and transformers speak: little while they load, in one line when they fail."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what the libraries log at each load of a small pipeline, none of which a user can act on."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    loggings = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in loggings]
    # peft imports it where it is installed, and some processors miss a kernel there that nothing here uses.
    other = logging.getLogger("bitsandbytes")
    others_level = other.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in loggings:
            library.set_verbosity_error()
            library.disable_progress_bar()
        # Its loaders log the whole text of an error, and then raise it.
        diffusers_logging.set_verbosity(logging.CRITICAL)
        other.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for library, level in zip(loggings, levels, strict=True):
                library.set_verbosity(level)
            other.setLevel(others_level)


def summarise(error: Exception) -> str:
    """Return the first line of an error's text that says something, shortened."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
