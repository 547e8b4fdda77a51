"""README and docs: short enough, their links lead somewhere, their Python is Python and imports what is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [ROOT / "examples/README.md", *sorted((ROOT / "examples").glob("*/README.md"))]
by_path = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def python_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_readme_is_short():
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1600


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    assert broken == []


@by_path
def test_every_page_of_docs_is_linked(page):
    name = page.relative_to(ROOT)
    if name.parts[0] != "docs" or name == Path("docs/README.md"):
        return
    linking = [other for other in PAGES if other != page and page.name in other.read_text(encoding="utf-8")]
    assert linking


@by_path
def test_python_compiles_and_imports_what_the_package_has(page):
    for code in python_of(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlcm_cli"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@by_path
def test_a_page_speaks_of_no_machine(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"(?:/home/|/root\b|/Users/|/work/|/tmp/)\S*", text) == []


@by_path
def test_modules_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    missing = []
    for path, name in re.findall(r"`([a-z_./]+\.py)(?:: (\w+))?`", text):
        file = next((file for file in (ROOT / path, ROOT / "rlcm_cli" / path) if file.exists()), None)
        if file is None and "/" in path:
            missing.append(path)
        elif file and name and not re.search(rf"\b(def|class) {name}\b", file.read_text(encoding="utf-8")):
            missing.append(f"{path}: {name}")
    assert missing == []


def test_the_architecture_lists_every_room():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE))
    rooms = {path.name for path in (ROOT / "rlcm_cli").iterdir() if path.is_dir() and any(path.glob("*.[pt][yo]*"))}
    assert listed == rooms
