import pytest
import torch

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards import score_images

IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
PROMPTS = ["cat", "dog", "cow"]
METADATA = [{"sample": f"s{index}"} for index in range(3)]


def score(returned):
    return score_images(lambda images, prompts, metadata: returned, "odd", IMAGES, PROMPTS, METADATA)


def test_the_reward_gets_the_batch_and_its_values_come_back():
    def reward(images, prompts, metadata):
        assert images is IMAGES
        assert prompts is PROMPTS
        assert metadata is METADATA
        return torch.tensor([1.0, -2.0, 0.5], requires_grad=True)

    rewards = score_images(reward, "fine", IMAGES, PROMPTS, METADATA)
    assert rewards.tolist() == [1.0, -2.0, 0.5]
    assert not rewards.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_reward_and_sample(value):
    with pytest.raises(RewardError) as caught:
        score(torch.tensor([1.0, value, value]))
    message = str(caught.value)
    assert f"reward 'odd' gave {value} for 2 of 3 samples" in message
    assert "sample 1, prompt 'dog', metadata {'sample': 's1'}" in message


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_another_count_or_shape_is_refused(shape):
    with pytest.raises(RewardError, match=r"'odd' returned shape \[.*\] for 3 images, not \[3\]"):
        score(torch.zeros(shape))


@pytest.mark.parametrize(
    ("returned", "found"), [(torch.zeros(3).double(), "torch.float64"), ([1.0, 2.0, 3.0], "list")]
)
def test_anything_but_a_float32_tensor_is_refused(returned, found):
    with pytest.raises(RewardError, match=f"'odd' returned {found}, not a float32 tensor"):
        score(returned)
