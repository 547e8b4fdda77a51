"""Attention by a kernel that never writes its scores down, on devices where torch chooses plain products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

ATTEND = torch.nn.functional.scaled_dot_product_attention


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Compute attention within the block as GPUs and the CPU do, also of tensors that have a shape only.

    Without it, the meta device holds the scores of all pairs of tokens, at 1024 pixels more than all the rest. The
    kernel is the CPU's, which keeps for the backward pass what those of GPUs keep: queries, keys, values, the result
    and a number per query.
    """
    # By its name: a mode of torch's functions is off while autograd computes activations again.
    torch.nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = ATTEND


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `torch.nn.functional.scaled_dot_product_attention` by the CPU's fused kernel, where it takes this."""
    if query.ndim != 4 or dropout_p or (attn_mask is not None and attn_mask.requires_grad):
        return ATTEND(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        shut = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = shut.masked_fill(attn_mask.logical_not(), float("-inf"))
    if attn_mask is not None and attn_mask.ndim not in (2, 4):
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended: Tensor = kernel(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended
