import json
import math

import pytest
import torch

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import REWARDS, Reward, RewardSpec, diversity, load_reward
from rlcm_cli.rewards.base import weights

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A CLIP model in the hub's layout, with a tokenizer of letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    folder = tmp_path_factory.mktemp("clips") / "clip"
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    CLIPTokenizerFast(vocab=vocabulary, merges=[], model_max_length=24).save_pretrained(folder)
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = len(vocabulary)
    text = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    model = CLIPModel(
        CLIPConfig(
            text_config={**tower, **text, "max_position_embeddings": 24, "initializer_factor": 20.0},
            vision_config={**tower, "image_size": 16, "patch_size": 8, "initializer_factor": 20.0},
            projection_dim=8,
        )
    )
    model.save_pretrained(folder)
    preprocessing = {
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def images(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)


def network(folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval()


def embedded(folder, batch):
    with torch.no_grad():
        features = network(folder).get_image_features(pixel_values=(batch / 255 - 0.5) / 0.25).pooler_output
    return torch.nn.functional.normalize(features, dim=-1)


def load(name, **settings):
    return load_reward(RewardSpec(name, settings)).function


def revision(name, **settings):
    spec = RewardSpec(name, settings)
    return spec.revise(spec.find_paths())


class TestMeanDistances:
    def test_two_images_have_the_same_distance(self):
        angle = math.radians(60)
        rows = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
        torch.testing.assert_close(diversity.mean_distances(rows), torch.tensor([0.5, 0.5]))

    def test_each_image_has_the_mean_to_the_others(self):
        rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        torch.testing.assert_close(diversity.mean_distances(rows), torch.tensor([1.0, 1.0, 1.0, 5 / 3]))

    def test_equal_images_have_none(self):
        rows = torch.nn.functional.normalize(torch.rand(4, 33, generator=torch.Generator().manual_seed(0)))
        assert diversity.mean_distances(rows[:1].repeat(4, 1)).tolist() == pytest.approx([0.0] * 4, abs=1e-6)


class TestParity:
    @pytest.mark.parametrize(
        ("labels", "classes", "expected"),
        [
            ([0, 1, 2, 3], 4, 0.0),
            ([3, 2, 1, 0, 0, 1, 2, 3], 4, 0.0),
            ([2, 2, 2, 2], 4, -math.sqrt(3 / 4)),
            ([0, 0], 2, -math.sqrt(1 / 2)),
            ([0, 0, 1, 1], 3, -math.sqrt(2 / 36 + 1 / 9)),
            ([0, 0, 0, 1], 2, -math.sqrt(2) / 4),
        ],
    )
    def test_it_is_the_negated_distance_to_the_uniform_histogram(self, labels, classes, expected):
        assert diversity.parity(torch.tensor(labels), classes).item() == pytest.approx(expected, abs=1e-7)


class TestDiversity:
    def test_it_is_the_mean_cosine_distance_of_the_embeddings(self, trained):
        batch = images(5)
        rows = embedded(trained, batch)
        expected = [sum(1 - float(rows[i] @ rows[j]) for j in range(5) if j != i) / 4 for i in range(5)]
        rewards = load("diversity", model=str(trained))(batch, "a cat", [{}] * 5)
        assert rewards.dtype == torch.float32
        assert rewards.tolist() == pytest.approx(expected, abs=1e-5)
        assert max(expected) - min(expected) > 1e-3

    def test_groups_do_not_touch_one_another(self, trained):
        batch = images(6)
        function = load("diversity", model=str(trained))
        metadata = [{"group": group} for group in (0, 1, 0, 1, 1, 0)]
        rewards = Reward("diversity", function, set_level=True).score(batch, ["a cat"] * 6, metadata)
        for rows in ([0, 2, 5], [1, 3, 4]):
            torch.testing.assert_close(rewards[rows], function(batch[rows], "a cat", [{}] * 3))

    def test_a_group_of_one_is_refused(self, trained):
        reward = Reward("diversity", load("diversity", model=str(trained)), set_level=True)
        with pytest.raises(RewardError, match="compares the images of a prompt"):
            reward.score(images(1), ["a cat"], [{"group": 0}])


class TestStatisticalParity:
    def labels(self, folder, batch, texts):
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=24, return_tensors="pt")
        with torch.no_grad():
            features = network(folder).get_text_features(**tokens).pooler_output
        return (embedded(folder, batch) @ torch.nn.functional.normalize(features, dim=-1).T).argmax(dim=1)

    def test_it_counts_the_nearest_texts(self, trained):
        batch = images(16)
        labels = self.labels(trained, batch, ["red ox", "blue ox", "green ox"])
        counts = torch.bincount(labels, minlength=3).tolist()
        assert sorted(counts)[1] > 0
        function = load("statistical_parity", model=str(trained), classes=["red", "blue", "green"], template="{} ox")
        rewards = function(batch, "a cat", [{}] * 16)
        expected = -math.sqrt(sum((count / 16 - 1 / 3) ** 2 for count in counts))
        assert rewards.dtype == torch.float32
        assert rewards.tolist() == pytest.approx([expected] * 16, abs=1e-6)
        assert torch.equal(function(batch, "a dog", [{}] * 16), rewards)

    def test_equal_images_are_the_worst(self, trained):
        classes = ["red", "blue", "green", "grey"]
        function = load("statistical_parity", model=str(trained), classes=classes)
        rewards = function(images(1).repeat(3, 1, 1, 1), "a cat", [{}] * 3)
        assert rewards.tolist() == pytest.approx([-math.sqrt(3 / 4)] * 3)

    def test_the_default_classes_are_six_skin_tones(self, trained):
        settings = REWARDS["statistical_parity"].defaults
        assert len(settings["classes"]) == 6
        assert json.loads(json.dumps(settings)) == settings
        assert load("statistical_parity", model=str(trained))(images(4), "", [{}] * 4).isfinite().all()

    @pytest.mark.parametrize("classes", ["cat", [], ["cat"], ["cat", "cat"], ["cat", ""], ["cat", 3], None])
    def test_classes_that_are_none(self, trained, classes):
        with pytest.raises(ConfigError, match="two or more different labels"):
            load("statistical_parity", model=str(trained), classes=classes)

    @pytest.mark.parametrize("template", ["a photo", "{} and {}", 3, None])
    def test_templates_that_take_no_label(self, trained, template):
        with pytest.raises(ConfigError, match=r"must hold \{\} once"):
            load("statistical_parity", model=str(trained), template=template)

    def test_braces_in_a_label_are_just_braces(self, trained):
        assert load("statistical_parity", model=str(trained), classes=["{x}", "{}"])(images(2), "", [{}] * 2).any()


@pytest.mark.parametrize("name", ["diversity", "statistical_parity"])
class TestWeights:
    def test_the_embedded_model_is_there_by_name(self, name, trained, monkeypatch, tmp_path):
        (tmp_path / "emoji_clip").symlink_to(trained)
        monkeypatch.setattr(weights, "_PACKAGE", tmp_path)
        batch = images(4)
        here = load(name, model="emoji-clip")(batch, "a cat", [{}] * 4)
        assert torch.equal(here, load(name, model=str(trained))(batch, "a cat", [{}] * 4))
        assert RewardSpec(name, {"model": "emoji-clip"}).find_obstacle() is None
        assert revision(name, model="emoji-clip") == revision(name, model=str(trained))

    def test_an_installation_without_the_embedded_model(self, name, tmp_path, monkeypatch):
        monkeypatch.setattr(weights, "_PACKAGE", tmp_path)
        with pytest.raises(RewardError, match="is missing from this installation; reinstall rlcm"):
            load(name, model="emoji-clip")

    def test_weights_that_are_not_here(self, name, monkeypatch):
        import huggingface_hub

        def snapshot_download(*args, **kwargs):
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(
            RewardError, match=rf"hf download .* \(1\.7 GB\).*reward_settings\.{name}\.model"
        ) as caught:
            load(name)
        assert "\n" not in str(caught.value)
        assert "hf download" in RewardSpec(name).find_obstacle()

    def test_a_model_that_is_no_text(self, name):
        with pytest.raises(ConfigError, match="must be a folder or a hub id"):
            load(name, model=7)

    def test_it_is_a_reward_of_groups_on_the_device_of_the_images(self, name):
        entry = REWARDS[name]
        assert entry.set_level
        assert entry.neural
