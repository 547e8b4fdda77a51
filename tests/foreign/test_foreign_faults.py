"""What libraries raise over foreign files, as one error in words."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import StrictDataclassDefinitionError
from safetensors import SafetensorError

from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries, first_lines


@pytest.mark.parametrize(
    "kind",
    [
        *(ZeroDivisionError, AssertionError, AttributeError, ModuleNotFoundError, KeyError, IndexError, MemoryError),
        *(FileNotFoundError, RuntimeError, RecursionError, NotImplementedError, SafetensorError, TypeError),
        *(UnicodeDecodeError, StrictDataclassDefinitionError, Exception),
    ],
)
def test_what_a_library_raises_over_a_file_is_a_foreign_error(kind):
    error = UnicodeDecodeError("utf-8", b"x", 0, 1, "why") if kind is UnicodeDecodeError else kind("why")
    with pytest.raises(ForeignError, match="why") as caught, faults_of_libraries():
        raise error
    assert caught.value.__cause__ is error


class OwnError(Exception):
    """An error of a class that no library raises."""


@pytest.mark.parametrize("kind", [OwnError, ForeignError, KeyboardInterrupt, StopIteration])
def test_any_other_error_passes(kind):
    with pytest.raises(kind) as caught, faults_of_libraries():
        raise kind("why")
    assert type(caught.value) is kind


def test_a_block_that_succeeds_is_left_alone():
    with faults_of_libraries():
        done = True
    assert done


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one line", "one line"),
        ("\n  first \n\n second\nthird\n", "first second"),
        ("", "ValueError"),
        (" \n\t\n", "ValueError"),
        ("x" * 500, "x" * 200),
    ],
)
def test_an_error_is_summarised_by_its_first_two_lines(text, said):
    assert first_lines(ValueError(text)) == said
