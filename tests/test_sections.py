"""What every table of settings is made of."""

from __future__ import annotations

from typing import Annotated, Literal, Union

import pytest
from pydantic import Field, ValidationError

from rlcm_cli.sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section, choices_of, sections_of


class Oak(Section):
    """One kind."""

    kind: Literal["oak"] = "oak"
    acorns: PositiveInt = 3
    """How many."""


class Pine(Section):
    """Another."""

    kind: Literal["pine"] = "pine"
    height: PositiveFloat = 1.0
    tilt: NonNegativeFloat = 0.0


class Garden(Section):
    """A table with a table and a choice of two."""

    tree: Annotated[Oak | Pine, Field(discriminator="kind")] = Oak()
    hedge: Pine = Pine()
    name: str | None = None


def test_a_section_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Oak().acorns = 4


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (Oak, {"acorn": 3}),
        (Oak, {"acorns": 0}),
        (Oak, {"acorns": "3"}),
        (Oak, {"acorns": 3.0}),
        (Oak, {"acorns": True}),
        (Pine, {"height": 0.0}),
        (Pine, {"height": float("inf")}),
        (Pine, {"height": float("nan")}),
        (Pine, {"tilt": -1.0}),
        (Pine, {"tilt": float("inf")}),
    ],
)
def test_unknown_keys_other_types_and_values_out_of_range_are_refused(section, values):
    with pytest.raises(ValidationError):
        section(**values)


def test_the_smallest_values_are_taken():
    assert Oak(acorns=1).acorns == 1
    assert Pine(height=1e-300, tilt=0.0).tilt == 0.0


def test_a_setting_is_described_by_the_text_below_it():
    assert Oak.model_fields["acorns"].description == "How many."
    assert Pine.model_fields["height"].description is None


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (Oak, [Oak]),
        (Oak | Pine, [Oak, Pine]),
        (Union[Oak, Pine, None], [Oak, Pine]),  # noqa: UP007
        (Oak | None, [Oak]),
        (int, []),
        (str | None, []),
        (list[Oak], []),
        (dict[str, Oak], []),
        (Literal["oak"], []),
    ],
)
def test_the_tables_that_a_setting_may_be(annotation, found):
    assert sections_of(annotation) == found


def test_only_what_may_be_one_of_several_tables_is_a_choice():
    assert choices_of(Garden) == ["tree"]
    assert choices_of(Oak) == []
