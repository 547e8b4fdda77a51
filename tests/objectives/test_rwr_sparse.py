"""RWR-sparse's own: the best images count alike, the others not at all."""

import pytest
import torch
from pydantic import ValidationError

from rlcm_cli.objectives.rwr_sparse import RwrSparseSettings, weigh


def test_the_best_are_kept():
    weights = weigh(RwrSparseSettings(share=0.5), torch.tensor([0.0, 3.0, -1.0, 1.0]))
    assert weights.tolist() == [0, 2, 0, 2]


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(ValidationError):
        RwrSparseSettings(share=share)
