"""Prompts cleaned as open_clip's tokenizer does it, which the one of transformers leaves out."""

from __future__ import annotations

import html

from rlcm_cli.errors import RewardError


def clean_prompt(text: str, *, reward: str) -> str:
    """Repair, unescape and straighten a prompt: `whitespace_clean(basic_clean(text))` of open_clip.

    Curly quotes become straight ones, full-width letters and ligatures plain ones, and `&amp;` becomes `&`. Plain
    ASCII needs no package for this.

    Args:
        text: A prompt.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If the prompt needs the package ftfy and that is not installed.
    """
    unescaped = html.unescape(html.unescape(text))
    if not (unescaped.isascii() and unescaped.isprintable()):
        try:
            import ftfy
        except ImportError:
            raise RewardError(
                f"reward {reward!r}: the prompt {text!r} has characters that the published code repairs with the "
                "package ftfy, which is not here; install it (`pip install ftfy`)"
            ) from None
        unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unescaped.split())
