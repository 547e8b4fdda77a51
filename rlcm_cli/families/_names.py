"""Names that other tools have for the layers of a transformer."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence


def stack_layers(rules: Sequence[tuple[str, str]], layers: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    r"""Return the layers of another tool by their names there, each with the layers here that it is.

    Args:
        rules: (regular expression of a whole name here, name there), such as (`blocks\.(\d+)\.to_q`, `\1.qkv`). Where
            several give one name, their outputs follow each other there in the order of the rules.
        layers: Names here. Those that no rule knows are left out.
    """
    found: dict[str, list[str]] = {}
    for pattern, name in rules:
        expression = re.compile(pattern)
        for layer in layers:
            if match := expression.fullmatch(layer):
                found.setdefault(match.expand(name), []).append(layer)
    return {name: tuple(members) for name, members in found.items()}
