"""The tables of the published reference code, with the float32 arithmetic of the processor that made them.

The reference takes ᾱ, its roots and logarithms in float32, also for float64 latents. Their last bits depend on the
processor and its vector library (a float32 root of MKL is off by one in a fifth of the cases), so a comparison to
1e-10 holds only with the bits that the table was made with. Each table therefore carries ᾱ (`alphas_cumprod`, float32
[1000]) and the roots and logarithms that it needs, by their arguments (`sqrt.argument`, `sqrt.value`, `log.argument`,
`log.value`, float32).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file

PARITY = Path(__file__).parent.parent / "data" / "parity"


def parity_cases(name: str) -> dict[str, list[dict]]:
    """Key without its last part → the cases of that schedule, in the order of its actions."""
    groups = defaultdict(list)
    for case in json.loads((PARITY / f"{name}.json").read_text()):
        groups[case["key"].rpartition(".")[0]].append(case)
    return dict(groups)


class ParityTable:
    """One table: its tensors, and the functions of its processor."""

    def __init__(self, name: str) -> None:
        self.tensors = load_file(PARITY / f"{name}.safetensors")
        self.alphas_cumprod = self.tensors["alphas_cumprod"]

    def gather(self, cases: list[dict], name: str) -> torch.Tensor:
        """A tensor of the cases, one after the other."""
        return torch.cat([self.tensors[f"{case['key']}.{name}"] for case in cases])

    def sqrt(self, values: torch.Tensor) -> torch.Tensor:
        """√values as the table's processor took it, in float64; in place of `core.schedule.rounded_sqrt`."""
        return self._look_up("sqrt", values)

    def log(self, values: torch.Tensor) -> torch.Tensor:
        """log(values) as the table's processor took it, in float64."""
        return self._look_up("log", values)

    def _look_up(self, function: str, values: torch.Tensor) -> torch.Tensor:
        known = dict(
            zip(*(self.tensors[f"{function}.{part}"].tolist() for part in ("argument", "value")), strict=True)
        )
        return torch.tensor([known[value] for value in values.flatten().tolist()], dtype=torch.float64).view_as(values)


def assert_rows_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Each row within `tolerance` of its own largest value."""
    error = (actual.double() - expected).abs().flatten(1).amax(1)
    assert (error <= tolerance * expected.abs().flatten(1).amax(1)).all(), error
