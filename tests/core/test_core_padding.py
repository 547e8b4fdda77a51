"""Rows of texts that differ in length, in one table."""

import torch

from rlcm_cli.core.padding import same_rows, stack_rows


def test_zeros_follow_the_shorter_rows():
    mask = [torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)]
    assert stack_rows(mask).tolist() == [[True, True, False], [True, True, True]]
    table = stack_rows([torch.ones(1, 2), torch.full((3, 2), 2.0)])
    assert table.tolist() == [[[1, 1], [0, 0], [0, 0]], [[2, 2], [2, 2], [2, 2]]]


def test_rows_of_one_shape_are_stacked_as_they_are():
    for shape in ((), (3,), (3, 2)):
        rows = [torch.rand(shape), torch.rand(shape)]
        assert torch.equal(stack_rows(rows), torch.stack(rows))


def test_rows_are_the_same_whatever_zeros_follow_them():
    row = torch.tensor([[1.0], [2.0]])
    longer = torch.cat([row, torch.zeros(2, 1)])
    assert same_rows(row, longer)
    assert same_rows(longer, row)
    assert same_rows(row, row.clone())
    assert not same_rows(row, torch.cat([row, torch.ones(1, 1)]))
    assert not same_rows(row, torch.tensor([[1.0], [3.0], [0.0]]))
    assert not same_rows(row, longer.double())
    assert not same_rows(row, torch.zeros(3, 2))
    assert not same_rows(torch.tensor(1.0), torch.ones(1))
