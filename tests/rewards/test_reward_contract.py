import pytest
import torch

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards import Reward

IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
PROMPTS = ["cat", "dog", "cow"]
METADATA = [{"sample": f"s{index}"} for index in range(3)]


def score(returned):
    return Reward("odd", lambda images, prompts, metadata: returned).score(IMAGES, PROMPTS, METADATA)


def test_the_reward_gets_the_batch_and_its_values_come_back():
    def reward(images, prompts, metadata):
        assert images is IMAGES
        assert prompts is PROMPTS
        assert metadata is METADATA
        return torch.tensor([1.0, -2.0, 0.5], requires_grad=True)

    rewards = Reward("fine", reward).score(IMAGES, PROMPTS, METADATA)
    assert rewards.tolist() == [1.0, -2.0, 0.5]
    assert not rewards.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_reward_and_sample(value):
    with pytest.raises(RewardError) as caught:
        score(torch.tensor([1.0, value, value]))
    message = str(caught.value)
    assert f"reward 'odd' returned {value} for 2 of 3 samples" in message
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


class TestSetLevel:
    IMAGES = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 2, 2)

    def score(self, function, groups, prompts=None):
        metadata = [{"sample": index, "group": group} for index, group in enumerate(groups)]
        reward = Reward("odd", function, set_level=True)
        return reward.score(self.IMAGES[: len(groups)], prompts or [f"p{group}" for group in groups], metadata)

    def test_it_gets_the_groups_one_by_one_and_its_values_go_back_to_their_places(self):
        seen = []

        def reward(images, prompt, metadata):
            seen.append((images[:, 0, 0, 0].tolist(), prompt, [known["sample"] for known in metadata]))
            return images[:, 0, 0, 0].float() + 100 * len(seen)

        rewards = self.score(reward, ["b", "a", "b", "a", "a", "b"])
        assert seen == [([0, 2, 5], "pb", [0, 2, 5]), ([1, 3, 4], "pa", [1, 3, 4])]
        assert rewards.tolist() == [100, 201, 102, 203, 204, 105]

    def test_the_same_prompt_drawn_twice_makes_two_groups(self):
        counts = []

        def reward(images, prompt, metadata):
            counts.append(len(images))
            return torch.zeros(len(images), requires_grad=True)

        assert not self.score(reward, [0, 0, 1, 1, 2, 2], ["a cat"] * 6).requires_grad
        assert counts == [2, 2, 2]

    def test_a_group_of_one_says_how_to_draw_more(self):
        with pytest.raises(RewardError) as caught:
            self.score(lambda images, prompt, metadata: torch.zeros(len(images)), [0, 0, 1])
        assert "reward 'odd' compares the images of a prompt, and prompt 'p1' has one" in str(caught.value)
        assert "set sample.group_size (and evaluate.images_per_prompt) to 2 or more" in str(caught.value)

    def test_every_group_is_checked(self):
        def one_short_for_the_second(images, prompt, metadata):
            return torch.zeros(len(images) - (prompt == "p1"))

        with pytest.raises(RewardError, match=r"'odd' returned shape \[2\] for 3 images, not \[3\]"):
            self.score(one_short_for_the_second, [0, 1, 0, 1, 0, 1])
        with pytest.raises(RewardError, match="'odd' returned float, not a float32 tensor"):
            self.score(lambda images, prompt, metadata: 1.0, [0, 0])

    def test_a_value_that_is_not_finite_names_its_sample_in_the_batch(self):
        def reward(images, prompt, metadata):
            return torch.tensor([0.0, float("nan") if prompt == "p1" else 1.0])

        with pytest.raises(
            RewardError, match=r"returned nan for 1 of 4 samples, the first being sample 3, prompt 'p1'"
        ):
            self.score(reward, [0, 1, 0, 1])

    def test_an_empty_batch_gives_no_reward(self):
        assert self.score(None, []).shape == (0,)
