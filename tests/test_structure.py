"""What holds for every module, by its source: a test of its own, and functions that can be read at once."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlcm_cli

TESTS = Path(__file__).parent
PACKAGE = Path(rlcm_cli.__file__).parent

LONGEST = 80
"""Lines of a function."""
MOST_PARAMETERS = 8

DISCOVERED = {
    "samplers": "SAMPLERS",
    "objectives": "OBJECTIVES",
    "families": "FAMILIES",
    "rewards": "REWARDS",
}
"""Folder → its records, which are found by being there. The tests of every record are those of each module in it."""

LONG: dict[str, str] = {}
"""MODULE:FUNCTION that may be longer, or take more → why."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name_module(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


def imports_of(file: Path) -> set[str]:
    """Names of the modules that a file may import: of `from a import b` both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def all_tests() -> list[Path]:
    return sorted(TESTS.rglob("test_*.py"))


def modules() -> Iterator[Path]:
    """Every module but those of the command line, which the tests run as commands, and those that only collect."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name not in ("__init__.py", "__main__.py") and not file.is_relative_to(PACKAGE / "cli"):
            yield file


def discovered_modules() -> set[Path]:
    """Modules whose records a test takes one after the other, as `parametrize` names them all."""
    found: set[Path] = set()
    for folder, records in DISCOVERED.items():
        own = [file for file in all_tests() if file.is_relative_to(TESTS / folder)]
        if any(_takes_each(file, records) for file in own):
            found |= {file for file in (PACKAGE / folder).glob("*.py") if not file.name.startswith("_")}
    return found


def _takes_each(file: Path, records: str) -> bool:
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "parametrize"
        and any(isinstance(part, ast.Name) and part.id == records for part in ast.walk(node))
        for node in ast.walk(parse(file))
    )


def test_every_module_is_imported_by_a_test():
    imported = set().union(*(imports_of(file) for file in all_tests()))
    discovered = discovered_modules()
    missing = [name_module(file) for file in modules() if file not in discovered]
    assert [name for name in missing if name not in imported] == []


def test_no_test_imports_a_test():
    names = {file.stem for file in all_tests()}
    found = {
        f"{file.relative_to(TESTS)}: {name}"
        for file in TESTS.rglob("*.py")
        for name in imports_of(file)
        if name.split(".")[-1] in names or name.split(".")[-1].startswith("test_")
    }
    assert found == set()


def test_no_two_tests_have_one_name():
    names = [file.name for file in TESTS.rglob("*.py") if file.name not in ("conftest.py", "__init__.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def functions_of(file: Path) -> Iterator[tuple[str, Function]]:
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{file.relative_to(PACKAGE).as_posix()}:{node.name}", node


def measure(function: Function, *, is_command: bool) -> tuple[int, int]:
    """Lines and parameters of a function; of a command, whose options are its parameters, the lines of its body."""
    arguments = function.args
    first = function.body[0].lineno if is_command else function.lineno
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return (function.end_lineno or first) - first + 1, 0 if is_command else len(parameters)


def is_command(file: Path, function: Function) -> bool:
    """Tell whether a function's parameters are options of the command line."""
    return file.is_relative_to(PACKAGE / "cli") and function.name.endswith("_command")


def test_functions_can_be_read_at_once():
    sizes = {
        name: measure(function, is_command=is_command(file, function))
        for file in PACKAGE.rglob("*.py")
        for name, function in functions_of(file)
    }
    long = {name for name, (lines, taken) in sizes.items() if lines > LONGEST or taken > MOST_PARAMETERS}
    assert {name: sizes[name] for name in sorted(long - LONG.keys())} == {}
    assert LONG.keys() - long == set(), "is short enough by now; take it out of the list"


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("def f(a, /, b, *, c): pass", (1, 3)),
        ("async def f(*args, **kwargs):\n    '''Text.'''\n    pass\n", (3, 0)),
        ("@decorated\ndef f(\n    self,\n    a=1,\n) -> int:\n    return 1", (5, 2)),
    ],
)
def test_the_measure_itself(source, size):
    function = ast.parse(source).body[0]
    assert isinstance(function, Function)
    assert measure(function, is_command=False) == size
    assert measure(function, is_command=True) == (len(function.body), 0)
