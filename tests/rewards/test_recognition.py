import json
import math
import shutil

import pytest
import torch

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import RewardSpec, load_reward
from rlcm_cli.rewards.base import weights
from rlcm_cli.rewards.recognition import recognition

LABELS = ["cat", "dog", "sea lion", "lion", "tabby, tabby cat", "other"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4],
        depths=[1],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    folder = tmp_path_factory.mktemp("judges")
    ResNetForImageClassification(config).save_pretrained(folder / "judge")
    ResNetModel(config).save_pretrained(folder / "headless")
    preprocessing = {
        "size": {"height": 16, "width": 24},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
    }
    for name in ("judge", "headless"):
        (folder / name / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture
def judge(trained, tmp_path):
    """A judge of one's own, to be damaged."""
    return shutil.copytree(trained / "judge", tmp_path / "judge")


def images(count: int, height: int = 16, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def score(folder, batch, prompts, **settings):
    reward = load_reward(RewardSpec("recognition", {"model": str(folder), **settings}))
    return reward.score(batch, prompts, [{}] * len(prompts))


def label_probabilities(folder, pixels):
    from transformers import ResNetForImageClassification

    model = ResNetForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixels).logits.softmax(-1)


def normalised(batch):
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
    return (batch / 255 - mean) / std


class TestValues:
    def test_it_is_the_log_probability_of_the_named_label(self, trained):
        batch = images(3)
        rewards = score(trained / "judge", batch, ["a cat", "two dogs and a dog", "a sea lion"])
        probabilities = label_probabilities(trained / "judge", normalised(batch))
        expected = probabilities[[0, 1, 2], [0, 1, 2]].log()
        torch.testing.assert_close(rewards, expected, rtol=1e-5, atol=1e-6)
        assert len(set(rewards.tolist())) == 3

    def test_other_sizes_are_resized_with_antialias(self, trained):
        batch = images(2, 64, 64)
        pixels = torch.nn.functional.interpolate(batch.float(), size=(16, 24), mode="bilinear", antialias=True)
        expected = label_probabilities(trained / "judge", normalised(pixels))[:, 0].log()
        torch.testing.assert_close(score(trained / "judge", batch, ["cat"] * 2), expected, rtol=1e-4, atol=1e-5)

    def test_batches_larger_than_64_keep_their_order(self, trained):
        batch = images(70)
        rewards = score(trained / "judge", batch, ["cat", "dog"] * 35)
        probabilities = label_probabilities(trained / "judge", normalised(batch))
        expected = probabilities[torch.arange(70), torch.tensor([0, 1] * 35)].log()
        torch.testing.assert_close(rewards, expected, rtol=1e-5, atol=1e-6)

    def test_the_factory_takes_a_folder(self, trained):
        batch = images(2)
        rewards = recognition(trained / "judge", floor=-50.0)(batch, ["cat", "dog"], [{}] * 2)
        assert torch.equal(rewards, score(trained / "judge", batch, ["cat", "dog"], floor=-50.0))

    def test_the_floor_clamps_what_is_below_and_nothing_else(self, trained):
        batch = images(8)
        free = score(trained / "judge", batch, ["cat"] * 8)
        floor = free.median().item()
        clamped = score(trained / "judge", batch, ["cat"] * 8, floor=floor)
        assert torch.equal(clamped, free.clamp(min=floor))
        assert not torch.equal(clamped, free)

    def test_the_default_floor_is_the_log_of_one_in_ten_thousand(self, judge):
        from safetensors.torch import load_file, save_file

        tensors = load_file(judge / "model.safetensors")
        tensors["classifier.1.bias"][0] = -100.0
        save_file(tensors, judge / "model.safetensors", metadata={"format": "pt"})
        assert score(judge, images(1), ["cat"]).item() == pytest.approx(math.log(1e-4))

    def test_a_judge_that_gives_nan_is_refused(self, judge):
        from safetensors.torch import load_file, save_file

        tensors = load_file(judge / "model.safetensors")
        tensors["classifier.1.bias"][0] = float("nan")
        save_file(tensors, judge / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RewardError, match=r"'recognition' returned nan for 2 of 2 samples"):
            score(judge, images(2), ["cat", "cat"])

    def test_no_gradient_is_kept(self, trained):
        reward = load_reward(RewardSpec("recognition", {"model": str(trained / "judge")}))
        assert not reward.function(images(1), ["cat"], [{}]).requires_grad

    def test_loading_and_scoring_print_nothing(self, trained, capfd):
        score(trained / "judge", images(1), ["cat"])
        assert capfd.readouterr() == ("", "")


class TestLabelChoice:
    @pytest.mark.parametrize(
        ("prompt", "label"),
        [
            ("cat", 0),
            ("A CAT, on blue", 0),
            ("a dog chasing a cat", 1),
            ("a cat chasing a dog", 0),
            ("a sea lion", 2),
            ("a sea and a lion", 3),
            ("a lion and other animals", 3),
            ("a tabby", 4),
            ("a tabby cat", 4),
        ],
    )
    def test_the_longest_whole_word_label_wins_then_the_earliest(self, trained, prompt, label):
        batch = images(1)
        expected = label_probabilities(trained / "judge", normalised(batch))[0, label].log()
        torch.testing.assert_close(score(trained / "judge", batch, [prompt])[0], expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("prompt", ["cats", "a caterpillar", "hotdog", "the other one", ""])
    def test_a_prompt_without_a_label_is_refused(self, trained, prompt):
        with pytest.raises(RewardError) as caught:
            score(trained / "judge", images(1), [prompt])
        message = str(caught.value)
        assert f"prompt {prompt!r} names none" in message
        assert "cat, dog, sea lion" in message
        assert "use prompts that do" in message


class TestJudgesThatCannotBeUsed:
    def refusal(self, model, kind=RewardError, **settings) -> str:
        with pytest.raises(kind) as caught:
            load_reward(RewardSpec("recognition", {"model": model, **settings}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_an_unreachable_hub(self, monkeypatch):
        import huggingface_hub

        def snapshot_download(*args, **kwargs):
            raise huggingface_hub.errors.LocalEntryNotFoundError("ConnectError:\nno network")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        message = self.refusal("owner/judge")
        assert "the hub does not give it (HF_HUB_OFFLINE is set; no local copy of" in message
        files = "--include 'config.json' --include 'preprocessor_config.json' --include 'model.safetensors'"
        assert f"run `hf download owner/judge {files} --local-dir DIR` (the size of the model)" in message
        assert "--set reward_settings.recognition.model=DIR" in message

    def test_a_missing_folder(self, tmp_path):
        assert "is not a folder here" in self.refusal(str(tmp_path / "none"))

    def test_an_empty_folder(self, tmp_path):
        assert "cannot be loaded as an image classifier of transformers" in self.refusal(str(tmp_path))

    def test_a_model_of_another_kind(self, judge):
        config = json.loads((judge / "config.json").read_text())
        (judge / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
        assert "cannot be loaded as an image classifier of transformers" in self.refusal(str(judge))

    def test_a_classifier_without_its_trained_head(self, trained):
        assert "lack classifier.1.bias and 1 more" in self.refusal(str(trained / "headless"))

    def test_cut_off_weights(self, judge):
        path = judge / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        assert "cannot be loaded" in self.refusal(str(judge))

    @pytest.mark.parametrize("text", ["{", "[]", '{"size": {"height": 8}}', '{"size": 8, "image_mean": [1]}'])
    def test_damaged_preprocessing(self, judge, text):
        (judge / "preprocessor_config.json").write_text(text)
        assert "does not give size, image_mean and image_std" in self.refusal(str(judge))

    def test_missing_preprocessing(self, judge):
        (judge / "preprocessor_config.json").unlink()
        assert "preprocessor_config.json cannot be read" in self.refusal(str(judge))

    def test_a_missing_embedded_judge(self, monkeypatch, tmp_path):
        monkeypatch.setattr(weights, "_PACKAGE", tmp_path)
        message = self.refusal("emoji-judge")
        assert f"{tmp_path / 'emoji_judge'} is missing from this installation; reinstall rlcm" in message

    def test_the_embedded_judge_is_the_default(self, monkeypatch, trained, tmp_path):
        (tmp_path / "emoji_judge").symlink_to(trained / "judge")
        monkeypatch.setattr(weights, "_PACKAGE", tmp_path)
        reward = load_reward(RewardSpec("recognition"))
        named = load_reward(RewardSpec("recognition", {"model": str(trained / "judge")}))
        values = [judge.score(images(1), ["cat"], [{}]) for judge in (reward, named)]
        assert torch.equal(*values)

    @pytest.mark.parametrize("floor", [0, 0.5, float("nan"), -math.inf, "low", True])
    def test_an_impossible_floor(self, trained, floor):
        assert "must be a finite number below 0" in self.refusal(str(trained / "judge"), ConfigError, floor=floor)

    def test_a_model_that_is_no_text(self):
        assert "must be a folder or a hub id" in self.refusal(7, ConfigError)


class TestWhatIdentifiesTheJudge:
    def spec(self, folder, **settings) -> RewardSpec:
        return RewardSpec("recognition", {"model": str(folder), **settings})

    def revision(self, folder) -> str:
        spec = self.spec(folder)
        return spec.revise(spec.find_paths())

    def test_the_place_of_the_judge_has_no_part_in_its_revision(self, judge, tmp_path):
        before = self.revision(judge)
        assert self.revision(judge.rename(tmp_path / "moved")) == before

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
    def test_another_judge_has_another_revision_in_the_same_directory(self, judge, name):
        before, directory = self.revision(judge), self.spec(judge).directory
        (judge / name).write_bytes((judge / name).read_bytes() + b" ")
        assert self.revision(judge) != before
        assert self.spec(judge).directory == directory

    def test_other_files_in_the_folder_have_no_part(self, judge):
        before = self.revision(judge)
        (judge / "README.md").write_text("a card")
        assert self.revision(judge) == before

    def test_line_ends_have_no_part(self, judge):
        before = self.revision(judge)
        path = judge / "config.json"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert self.revision(judge) == before

    def test_a_loaded_reward_knows_its_revision(self, judge):
        assert load_reward(self.spec(judge)).revision == self.revision(judge)

    def test_another_floor_or_folder_gives_another_directory(self, judge, tmp_path):
        before = self.spec(judge).directory
        assert self.spec(judge, floor=-5.0).directory != before
        assert self.spec(tmp_path / "another").directory != before

    def test_naming_the_directory_needs_no_judge(self, tmp_path):
        assert self.spec(tmp_path / "none").directory.startswith("recognition-")

    def test_a_judge_without_weights_has_no_revision(self, judge):
        (judge / "model.safetensors").unlink()
        with pytest.raises(RewardError, match=r"model\.safetensors is not there; the folder of its model holds"):
            self.revision(judge)


class TestObstacle:
    def obstacle(self, model) -> str | None:
        spec = RewardSpec("recognition", {"model": str(model)})
        return spec.find_obstacle()

    def test_the_embedded_judge_and_a_folder_can_run(self, judge):
        assert self.obstacle("emoji-judge") is None
        assert self.obstacle(judge) is None

    def test_a_model_that_is_elsewhere_is_in_the_way(self):
        obstacle = self.obstacle("owner/judge")
        assert "not here" in obstacle
        assert "hf download owner/judge" in obstacle
        assert "\n" not in obstacle
