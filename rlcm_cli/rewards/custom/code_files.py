"""The files that Python code is in, found by its import statements, without running any of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TOOLKIT = __name__.partition(".")[0]


def find_code_files(source: Path, root: Path, package: str | None = None) -> set[Path]:
    """List a source file and those that its import statements lead to, and theirs, within one folder.

    Statements inside functions count; what `importlib` is given at run time is not found. This toolkit itself is left
    out, which may lie in the same folder: the versions of its rewards identify what it computes.

    Args:
        source: A Python file in or below `root`.
        root: The folder that absolute names of modules count from.
        package: The only package or module of that folder that is followed; None: all.

    Returns:
        Resolved paths.
    """
    root, found, waiting = root.resolve(), set[Path](), [source.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_relative_to(root):
            continue
        found.add(file)
        names = _imported(file, file.parent.relative_to(root).parts)
        waiting += [
            module
            for name in names
            if name[0] != TOOLKIT and (package is None or name[0] == package)
            for length in range(1, len(name) + 1)
            for module in (
                root.joinpath(*name[:length], "__init__.py"),
                root.joinpath(*name[:length]).with_suffix(".py"),
            )
            if module.is_file()
        ]
    return found


def _imported(file: Path, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Return the absolute names, in parts, of the modules that a file of a package may import."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # whoever runs the file says so, with its line
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            yield from ((*base, alias.name) for alias in node.names)
