"""Records that are found by being there: every module of a folder declares one, or several, under the same name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import MappingProxyType
from typing import Protocol, TypeVar

from rlcm_cli.errors import ConfigError


class HasKind(Protocol):
    """A record with the name that a configuration chooses it by."""

    @property
    def kind(self) -> str:
        """The name, once in its folder."""


RecordT = TypeVar("RecordT", bound=HasKind)
EntryT = TypeVar("EntryT")


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


def discover_entries(package: str, folder: Iterable[str], constant: str, record: type[EntryT]) -> dict[str, EntryT]:
    """Return the records of every module of a package, by their names, in the order of the modules.

    Modules that begin with an underscore, and packages, are helpers and are passed over.

    Args:
        package: The package's `__name__`.
        folder: Its `__path__`.
        constant: Name that each module gives its dict from names to records, such as ENTRIES.
        record: Class of the records.

    Raises:
        ConfigError: If a module has no such dict, or two have the same name in theirs.
    """
    found: dict[str, EntryT] = {}
    homes: dict[str, str] = {}
    modules = sorted(module.name for module in pkgutil.iter_modules(list(folder)) if not module.ispkg)
    for module in modules:
        if module.startswith("_"):
            continue
        home = f"{package}.{module}"
        declared = getattr(importlib.import_module(home), constant, None)
        if not isinstance(declared, dict) or not all(isinstance(entry, record) for entry in declared.values()):
            raise ConfigError(
                f"{home}: declares no {constant}; every module of {package} needs {constant} = {{NAME: "
                f"{record.__name__}(…)}}, or a name that begins with an underscore"
            )
        for name, entry in declared.items():
            if name in found:
                raise ConfigError(f"{home}: {constant} has {name!r}, which {homes[name]} has too; rename one")
            found[name], homes[name] = entry, home
    return found
