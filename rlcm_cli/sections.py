"""The base of every table of settings: frozen, typed, unknown keys refused."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Quantization = Literal["4bit", "8bit"]
"""How many bits a weight has that is stored in fewer than 16."""


class Section(BaseModel):
    """A frozen table of settings that refuses unknown keys and does not convert types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


SectionT = TypeVar("SectionT", bound=Section)


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the tables that a setting may be: a section itself, or each of a union; none for other settings."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return [found for member in members for found in sections_of(member)]


def choices_of(section: type[Section]) -> list[str]:
    """Return the tables of a section that are one of several, chosen by their `kind`."""
    return [name for name, setting in section.model_fields.items() if len(sections_of(setting.annotation)) > 1]


def settings_of(section: type[Section], prefix: str = "") -> dict[str, list[FieldInfo]]:
    """Return every setting that is not a table itself, by its dotted key; several fields where tables are a choice."""
    found: dict[str, list[FieldInfo]] = {}
    for name, setting in section.model_fields.items():
        tables = sections_of(setting.annotation)
        for table in tables:
            for key, fields in settings_of(table, f"{prefix}{name}.").items():
                found.setdefault(key, []).extend(fields)
        if not tables:
            found[prefix + name] = [setting]
    return found
