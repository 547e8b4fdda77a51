"""Text that comes from elsewhere, such as a server's words, made fit for a message of ours."""

from __future__ import annotations

LONGEST = 300
"""Characters that are shown of a text by default."""


def quote_foreign(text: str, *, secret: str | None = None, longest: int = LONGEST) -> str:
    """Return the text as one short line that a terminal can show.

    White space becomes single spaces, and what is not printable (control characters, half characters, invisible
    marks that reorder a line) becomes "�".

    Args:
        text: Any text.
        secret: A token or key that is replaced by `***` wherever it occurs, before anything is cut off.
        longest: Characters that are kept; more are replaced by "…".
    """
    if secret:
        text = text.replace(secret, "***")
    # A text of megabytes is not worth cleaning as a whole; white space may vanish, so more is looked at than is kept.
    words = " ".join(text[: 16 * longest].split())
    shown = "".join(character if character.isprintable() else "�" for character in words)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
