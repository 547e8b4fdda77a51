"""Records that are found by being in a folder."""

import importlib
import subprocess
import sys
from dataclasses import dataclass

import pytest

from rlcm_cli.discovery import discover, discover_entries, list_kinds
from rlcm_cli.errors import ConfigError


@dataclass(frozen=True)
class Fruit:
    """A record of the tests."""

    kind: str


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write modules into a package of their own; return its path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "orchard"
    package.mkdir()
    before = set(sys.modules)

    def write(**modules):
        (package / "__init__.py").touch()
        for name, text in modules.items():
            (package / f"{name}.py").write_text(f"from {__name__} import Fruit\n{text}\n")
        importlib.invalidate_caches()
        return importlib.import_module("orchard").__path__

    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "orchard":
            del sys.modules[name]


@pytest.fixture
def find(write):
    return lambda **modules: discover("orchard", write(**modules), "FRUIT", Fruit)


@pytest.fixture
def gather(write):
    return lambda **modules: discover_entries("orchard", write(**modules), "FRUITS", Fruit)


def test_modules_are_found_in_the_order_of_their_names(find):
    found = find(pear="FRUIT = Fruit('pear')", crab_apple="FRUIT = Fruit('crab-apple')", _peel="")
    assert list(found) == ["crab-apple", "pear"]
    assert found["pear"] == Fruit("pear")


def test_kinds_are_listed_without_an_import(tmp_path):
    for name in ("pear", "crab_apple", "_peel", "__init__"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    assert list_kinds([str(tmp_path)]) == ["crab-apple", "pear"]


def test_a_module_without_a_record_is_one_clear_error(find):
    with pytest.raises(ConfigError, match=r"^orchard\.apple: declares no FRUIT; every module of orchard needs FRUIT"):
        find(apple="FRUIT = 'red'")


def test_two_records_of_one_kind_are_one_clear_error(find):
    with pytest.raises(ConfigError, match=r"^orchard\.pear: its FRUIT is of the kind 'apple', and the name of the"):
        find(apple="FRUIT = Fruit('apple')", pear="FRUIT = Fruit('apple')")


def test_entries_of_all_modules_are_gathered_in_their_order(gather, tmp_path):
    (tmp_path / "orchard" / "tools").mkdir()
    (tmp_path / "orchard" / "tools" / "__init__.py").write_text("raise ImportError")
    found = gather(pear="FRUITS = {'b': Fruit('x'), 'a': Fruit('y')}", apple="FRUITS = {'c': Fruit('z')}", _peel="")
    assert list(found) == ["c", "b", "a"]
    assert found["a"] == Fruit("y")


@pytest.mark.parametrize("declared", ["", "FRUITS = [Fruit('red')]", "FRUITS = {'apple': 'red'}"])
def test_a_module_without_entries_is_one_clear_error(gather, declared):
    with pytest.raises(ConfigError, match=r"^orchard\.apple: declares no FRUITS; .* FRUITS = \{NAME: Fruit\(…\)\}"):
        gather(apple=declared)


def test_two_entries_of_one_name_are_one_clear_error(gather):
    with pytest.raises(ConfigError, match=r"^orchard\.pear: FRUITS has 'a', which orchard\.apple has too"):
        gather(apple="FRUITS = {'a': Fruit('a')}", pear="FRUITS = {'a': Fruit('b')}")


def test_discovery_needs_no_torch():
    check = "import sys; import rlcm_cli.discovery; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
