"""What a foreign folder can make diffusers, transformers, tokenizers and safetensors raise while they read it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class ForeignError(Exception):
    """Why something foreign cannot be used, in words; callers add what it is for and what to do."""


@contextlib.contextmanager
def faults_of_libraries() -> Iterator[None]:
    """Turn what libraries raise within the block into a `ForeignError`: for blocks that only call a library.

    A value of the wrong type or size in a configuration reaches constructors unchecked, so that nearly any built-in
    error can come out: a list that is too short (`LookupError`), a division by zero (`ArithmeticError`), a
    quantisation whose package is missing (`ImportError`), a JSON file that is nested too deep (`RecursionError`).
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        raise ForeignError(first_lines(error)) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ForeignError(first_lines(error)) from error  # tokenizers has no error class


def first_lines(error: BaseException) -> str:
    """Return the first two lines of an error's text that say something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
