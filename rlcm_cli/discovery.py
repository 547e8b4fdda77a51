"""Records that are found by being there: every module of a folder declares one under the same name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import MappingProxyType
from typing import Protocol, TypeVar

from rlcm_cli.errors import ConfigError


class Named(Protocol):
    """A record with the name that a configuration chooses it by."""

    @property
    def kind(self) -> str:
        """The name, once in its folder."""


RecordT = TypeVar("RecordT", bound=Named)


def discover(
    package: str, folder: Iterable[str], constant: str, record: type[RecordT]
) -> MappingProxyType[str, RecordT]:
    """Return the record of every module of a package, by its kind, in the order of `list_kinds`.

    Modules that begin with an underscore are helpers and are passed over.

    Args:
        package: The package's `__name__`.
        folder: Its `__path__`.
        constant: Name that each module gives its record, such as SAMPLER.
        record: Class of the records.

    Raises:
        ConfigError: If a module has no such record, or one of another kind than the module's name says, so that no two
            are of one kind.
    """
    found: dict[str, RecordT] = {}
    for kind in list_kinds(folder):
        home = f"{package}.{kind.replace('-', '_')}"
        declared = getattr(importlib.import_module(home), constant, None)
        if not isinstance(declared, record):
            raise ConfigError(
                f"{home}: declares no {constant}; every module of {package} needs {constant} = {record.__name__}(…), "
                "or a name that begins with an underscore"
            )
        if declared.kind != kind:
            raise ConfigError(
                f"{home}: its {constant} is of the kind '{declared.kind}', and the name of the module says '{kind}'; "
                "give both one name"
            )
        found[kind] = declared
    return MappingProxyType(found)


def list_kinds(folder: Iterable[str]) -> list[str]:
    """Return the kinds that a package's `__path__` holds, sorted, importing nothing: a help text needs no more.

    A module's name is its kind, with an underscore for each hyphen.
    """
    names = (module.name for module in pkgutil.iter_modules(list(folder)))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))
