"""What a user should know of something that was loaded, although it can be used."""

from __future__ import annotations

import warnings


class ForeignNote(UserWarning):
    """A line about a model, reward or data set that works, but not quite as its files say."""


def note(text: str) -> None:
    """Tell the user; the command line prints it as a warning on stderr."""
    warnings.warn(text, ForeignNote, stacklevel=2)
