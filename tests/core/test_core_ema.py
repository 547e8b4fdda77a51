import numpy as np
import pytest
import torch

from rlcm_cli.core.ema import average_weights


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_equals_the_recurrence(decay):
    generator = np.random.default_rng(0)
    start, *path = generator.normal(size=(20, 3, 2)).astype(np.float32)
    average, expected = {"a": torch.from_numpy(start)}, start.astype(np.float64)
    for weights in path:
        average = average_weights(average, {"a": torch.from_numpy(weights)}, decay)
        expected = decay * expected + (1 - decay) * weights
    np.testing.assert_allclose(average["a"].numpy(), expected, rtol=0, atol=1e-6)


def test_each_weight_is_averaged_with_its_own_and_no_argument_is_changed():
    average = {"a": torch.tensor([1.0]), "b": torch.tensor([[10.0, 20.0]])}
    weights = {"b": torch.tensor([[20.0, 40.0]]), "a": torch.tensor([2.0], requires_grad=True)}
    result = average_weights(average, weights, 0.75)
    assert {name: tensor.tolist() for name, tensor in result.items()} == {"a": [1.25], "b": [[12.5, 25.0]]}
    assert average["a"].item() == 1.0
    assert weights["a"].item() == 2.0
    assert not result["a"].requires_grad


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.999])
def test_weights_that_stay_are_their_own_average_to_the_bit(decay):
    weights = {"a": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    average = weights
    for _ in range(10):
        average = average_weights(average, weights, decay)
    assert torch.equal(average["a"], weights["a"])


def test_half_precision_weights_are_averaged_in_float32():
    average, one = {"a": torch.zeros(1, dtype=torch.bfloat16)}, {"a": torch.ones(1, dtype=torch.bfloat16)}
    for _ in range(1000):  # in bfloat16 steps of 1e-3 are lost from about 0.25 on
        average = average_weights(average, one, 0.999)
    assert average["a"].dtype == torch.float32
    assert average["a"].item() == pytest.approx(1 - 0.999**1000, rel=1e-4)
