"""Rows of different lengths in one table, such as the tokens of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stack_rows(rows: Sequence[Tensor]) -> Tensor:
    """Stack U rows, each [length, …] of one dtype, to [U, longest, …]: zeros follow the shorter ones.

    Rows of one shape are stacked as they are, whatever their dimensions.
    """
    longest = max((len(row) for row in rows if row.ndim), default=0)
    return torch.stack([row if not row.ndim or len(row) == longest else _lengthen(row, longest) for row in rows])


def same_rows(one: Tensor, other: Tensor) -> bool:
    """Return whether two rows are equal but for zeros that follow one of them."""
    if one.shape == other.shape:
        return torch.equal(one, other)
    if one.dtype != other.dtype or not one.ndim or one.shape[1:] != other.shape[1:]:
        return False
    longest = max(len(one), len(other))
    return torch.equal(_lengthen(one, longest), _lengthen(other, longest))


def _lengthen(row: Tensor, length: int) -> Tensor:
    return torch.cat([row, row.new_zeros(length - len(row), *row.shape[1:])])
