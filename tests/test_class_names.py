"""Somebody who greps for a class finds one: no two modules define a class of the same name."""

import ast
from collections import defaultdict
from pathlib import Path

import rlcm_cli

PACKAGE = Path(rlcm_cli.__file__).parent


def test_no_two_classes_have_one_name():
    homes: dict[str, list[str]] = defaultdict(list)
    for module in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(module.relative_to(PACKAGE)))
    assert len(homes) > 100
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}
