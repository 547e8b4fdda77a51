"""Attention by the fused kernel equals torch's, and holds no scores on the meta device."""

import pytest
import torch

from rlcm_cli.core.allocations import PeakAllocations
from rlcm_cli.measuring.attention import ATTEND, attend, fused_attention

SHAPE = (2, 4, 6, 8)
HALF = torch.arange(6) < 4
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.5},
    "of booleans": {"attn_mask": HALF.expand(2, 1, 6, 6)},
    "of numbers": {"attn_mask": torch.linspace(-1, 1, 6).expand(6, 6)},
    "of three dimensions": {"attn_mask": HALF.expand(4, 6, 6)},
}


@pytest.mark.parametrize("case", CASES)
def test_it_equals_torch_s(case):
    results = []
    for compute in (attend, ATTEND):
        torch.manual_seed(0)
        query, key, value = (torch.randn(SHAPE, requires_grad=True) for _ in range(3))
        result = compute(query, key, value, **CASES[case])
        result.square().sum().backward()
        results.append([result.detach(), query.grad, key.grad, value.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_groups_of_heads_and_other_shapes_are_computed_too():
    query, few = torch.randn(SHAPE), torch.randn(2, 2, 6, 8)
    torch.testing.assert_close(attend(query, few, few, enable_gqa=True), ATTEND(query, few, few, enable_gqa=True))
    flat = torch.randn(4, 6, 8)
    torch.testing.assert_close(attend(flat, flat, flat), ATTEND(flat, flat, flat))


def test_no_scores_are_held_on_the_meta_device():
    tokens = 1000
    tensors = [torch.empty(1, 2, tokens, 8, device="meta", requires_grad=True) for _ in range(3)]

    def step():
        torch.utils.checkpoint.checkpoint(compute, *tensors, use_reentrant=False).sum().backward()

    def compute(*tensors):
        return torch.nn.functional.scaled_dot_product_attention(*tensors)

    with fused_attention(), PeakAllocations() as counted:
        step()
    assert 4 * 2 * tokens * 8 < counted.peak < 2 * tokens * tokens
    with PeakAllocations() as plain:
        step()
    assert plain.peak > 4 * 2 * tokens * tokens
    assert torch.nn.functional.scaled_dot_product_attention is ATTEND
