"""Counting the bytes of living tensors."""

import torch

from rlcm_cli.core.allocations import PeakAllocations, distinct_bytes

KILOBYTE = 250
"""float32 values."""


def test_the_peak_is_what_lives_at_once():
    with PeakAllocations() as counted:
        kept = torch.zeros(4 * KILOBYTE)
        for _ in range(5):
            torch.ones(2 * KILOBYTE)
        del kept
        torch.ones(3 * KILOBYTE)
    assert counted.peak == 6000


def test_views_and_what_was_there_before_count_nothing():
    before = torch.zeros(100, KILOBYTE)
    with PeakAllocations() as counted:
        before.t()
        before.view(-1)[10:20].add_(1)
    assert counted.peak == 0


def test_what_autograd_keeps_counts_until_it_is_freed():
    weight = torch.ones(KILOBYTE, requires_grad=True)
    with PeakAllocations() as counted:
        hidden = weight.exp()  # kept for the backward pass
        loss = hidden.sin().sum()  # sin keeps `hidden`, which is the same tensor
        kept = counted.peak
        loss.backward()
    # hidden and, until sum() is done, its sine; then hidden with at least the two gradients.
    assert kept == 2000 + 4
    assert 3000 <= counted.peak <= 5000
    assert weight.grad is not None


def test_activations_grow_with_the_batch_by_equal_bytes():
    layers = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Tanh()) for _ in range(5)))

    def peak(batch):
        layers.zero_grad()
        with PeakAllocations() as counted:
            layers(torch.zeros(batch, 20)).sum().backward()
        return counted.peak

    one, two, nine = peak(100), peak(200), peak(900)
    assert two - one >= 5 * 100 * 20 * 4
    assert nine - one == 8 * (two - one)


def test_shared_memory_counts_once():
    tensor = torch.zeros(KILOBYTE)
    assert distinct_bytes([tensor, tensor.view(2, -1), torch.zeros(KILOBYTE)]) == 2000
