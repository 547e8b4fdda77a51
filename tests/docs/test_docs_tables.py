"""The tables of docs/ are those that the package gives now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rlcm_cli.objectives import OBJECTIVES
from rlcm_cli.rewards import REWARDS
from rlcm_cli.samplers import SAMPLERS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_tables_are_current(tables, page):
    text = page.read_text(encoding="utf-8")
    assert tables.fill(text) == text, "run `python docs/tables.py`"


def test_every_table_is_in_a_page(tables):
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert all(text.count(f"<!-- generated: {name} -->") == 1 for name in tables.TABLES)
    listed = {*REWARDS, *SAMPLERS, *OBJECTIVES, *(file.stem for file in tables.PRESETS.glob("*.toml"))}
    assert [name for name in listed if f"\n| `{name}` |" not in text] == []


def test_a_table_that_is_not_current_is_found(tables):
    text = (DOCS / "samplers.md").read_text(encoding="utf-8")
    assert tables.fill(text.replace("| `ddim` |", "| `dim` |")) != text.replace("| `ddim` |", "| `dim` |")
