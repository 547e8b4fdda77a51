"""Models of the Qwen-VL series without their processors: inputs, answers, folders that cannot be read."""

import json
import shutil

import pytest
import torch
from small_qwen import EDGES, SPECIAL_TOKENS, pictures, save_small_qwen, template_of

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.networks.qwen_vl import Patches, is_qwen_vl, load_qwen_vl, load_reader

SMALL = {"shortest_edge": 1024, "longest_edge": 10**6}
"""So that small images stay small; Qwen3-VL's own least size is 256 × 256."""
QUESTIONS = ["two cats?", "a dog", "Evaluate the image of two dogs, and say Yes or No"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    return {kind: save_small_qwen(folder / kind, kind, size=SMALL, min_pixels=None, max_pixels=None) for kind in EDGES}


@pytest.fixture(params=EDGES)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def copy(folders, tmp_path):
    """A model of one's own, to be damaged."""
    return shutil.copytree(folders["qwen3_vl"], tmp_path / "copy")


def noise(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def amend(file, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


class TestPatches:
    def processor(self, folder, **size):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return Qwen2VLImageProcessorPil.from_pretrained(folder, **size)

    @pytest.mark.parametrize("size", [(448, 448), (224, 448)])
    def test_whole_patches_are_those_of_transformers(self, folders, size):
        """448 pixels are whole tokens to both sizes of patches."""
        for folder in folders.values():
            patches, batch = load_reader(folder, reward="test").patches, noise(2, *size)
            expected = self.processor(folder)(list(batch), return_tensors="pt")
            torch.testing.assert_close(patches(batch), expected["pixel_values"], rtol=0, atol=1e-6)
            rows, columns = patches.grid(*size)
            assert expected["image_grid_thw"].tolist() == [[1, rows, columns]] * 2

    @pytest.mark.parametrize("size", [(100, 70), (300, 512), (30, 900)])
    def test_resized_ones_differ_by_the_rounding_of_levels(self, folder, size):
        patches, batch = load_reader(folder, reward="test").patches, noise(1, *size)
        expected = self.processor(folder)(list(batch), return_tensors="pt")["pixel_values"]
        # Two levels of 255, in units of the smallest deviation of a channel.
        torch.testing.assert_close(patches(batch), expected, rtol=0, atol=2 / 255 / min(patches.std) + 1e-5)

    def test_the_sizes_of_an_image_are_bounded(self):
        assert Patches(14, 2, 2, least=256 * 784, most=256 * 784).grid(512, 512) == (32, 32)
        assert Patches(14, 2, 2, least=3136, most=256 * 784).grid(1024, 512) == (44, 22)

    def test_floats_have_the_numbers_of_whole_levels_and_a_gradient(self):
        patches = Patches(14, 2, 2, least=3136, most=10000)
        batch = noise(1, 200, 150)
        floats = batch.float().requires_grad_()
        assert torch.equal(patches(floats).detach(), patches(batch))
        patches(floats).sum().backward()
        assert (floats.grad != 0).any()


class TestAnswers:
    def test_they_are_the_greedy_ones(self, folder):
        """Token by token, one image at a time, without padding or a cache."""
        model, batch = load_qwen_vl(folder, reward="test", dtype="float32"), pictures(3)
        for row, answer in enumerate(model.write(batch, QUESTIONS, 4)):
            inputs = model.reader.read(batch[row : row + 1], QUESTIONS[row : row + 1], pad="left")
            start = inputs["input_ids"].shape[1]
            for _ in range(4):
                token = model.network(**inputs).logits[:, -1:].argmax(-1)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
            assert model.reader.tokenizer.decode(inputs["input_ids"][0, start:]).strip() == answer

    def test_a_batch_of_other_texts_changes_nothing(self, folder):
        model, batch = load_qwen_vl(folder, reward="test", dtype="float32"), pictures(3)
        single = [model.write(batch[row : row + 1], QUESTIONS[row : row + 1], 4)[0] for row in range(3)]
        assert model.write(batch, QUESTIONS, 4) == single
        assert len(set(single)) > 1

    def test_no_images_have_no_answers(self, folders):
        model = load_qwen_vl(folders["qwen3_vl"], reward="test", dtype="float32")
        assert model.write(pictures(0), [], 4) == []
        assert model.log_probs(pictures(0), [], []).shape == (0,)

    def test_loading_and_answering_print_nothing(self, folder, capfd):
        model = load_qwen_vl(folder, reward="test", dtype="float32")
        model.write(pictures(2), QUESTIONS[:2], 2)
        model.log_probs(pictures(2), QUESTIONS[:2], [["Yes"]] * 2)
        assert capfd.readouterr() == ("", "")

    def test_probabilities_of_all_tokens_are_one(self, folders):
        model = load_qwen_vl(folders["qwen3_vl"], reward="test", dtype="float32")
        tokenizer = model.reader.tokenizer
        words = map(tokenizer.decode, range(len(tokenizer) - len(SPECIAL_TOKENS)))
        every = [word for word in words if word != "�"]
        found = model.log_probs(pictures(1), ["a cat"], [every])
        assert -1 < found.item() <= 0


class TestFolders:
    def refusal(self, folder) -> str:
        with pytest.raises(RewardError) as caught:
            load_qwen_vl(folder, reward="test", dtype="float32")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_template_in_any_of_its_places(self, copy):
        expected = load_reader(copy, reward="test")._write_chat("a cat", 1)
        (copy / "chat_template.json").rename(copy / "other.json")
        (copy / "chat_template.jinja").write_text(template_of("qwen3_vl"))
        assert load_reader(copy, reward="test")._write_chat("a cat", 1) == expected
        (copy / "chat_template.jinja").unlink()
        amend(copy / "tokenizer_config.json", chat_template=template_of("qwen3_vl"))
        assert load_reader(copy, reward="test")._write_chat("a cat", 1) == expected

    def test_sizes_under_any_of_their_names(self, copy):
        expected = load_reader(copy, reward="test").patches
        least, most = SMALL.values()
        for sizes in ({"size": {"min_pixels": least, "max_pixels": most}}, {"min_pixels": least, "max_pixels": most}):
            amend(copy / "preprocessor_config.json", **{"size": None, **sizes})
            assert load_reader(copy, reward="test").patches == expected
        values = json.loads((copy / "preprocessor_config.json").read_text())
        (copy / "preprocessor_config.json").unlink()
        (copy / "processor_config.json").write_text(json.dumps({"image_processor": values}))
        assert load_reader(copy, reward="test").patches == expected
        (copy / "processor_config.json").write_text("{}")
        assert "KeyError: 'image_processor'" in self.refusal(copy)

    def test_another_model(self, copy):
        assert is_qwen_vl(copy)
        amend(copy / "config.json", model_type="llava")
        assert not is_qwen_vl(copy)
        assert not is_qwen_vl(copy / "nothing")
        message = self.refusal(copy)
        assert "holds a model of type llava, and this reward reads qwen2_vl, qwen2_5_vl, qwen3_vl" in message

    @pytest.mark.parametrize(
        ("name", "complaint"),
        [
            ("config.json", "copy/config.json is missing"),
            ("preprocessor_config.json", "copy/preprocessor_config.json is missing"),
            ("chat_template.json", "there is no chat template"),
            ("model.safetensors", "copy holds no safetensors weights (model.safetensors)"),
            ("tokenizer.json", "holds no tokenizer"),
        ],
    )
    def test_a_missing_file(self, copy, name, complaint):
        (copy / name).unlink()
        assert complaint in self.refusal(copy)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"patch_size": "x"}, "ValueError: invalid literal"),
            ({"merge_size": 0}, "its preprocessing has an impossible size"),
            ({"size": {"shortest_edge": 100, "longest_edge": 10}}, "its preprocessing has an impossible size"),
            ({"size": None}, "KeyError: 'min_pixels'"),
            ({"image_std": [0.5]}, "image_mean and image_std need three values"),
        ],
    )
    def test_preprocessing_that_is_none(self, copy, changes, complaint):
        amend(copy / "preprocessor_config.json", **changes)
        assert complaint in self.refusal(copy)

    @pytest.mark.parametrize("template", ["no image", "{{", "<|image_pad|><|image_pad|>"])
    def test_a_template_without_an_image(self, copy, template):
        (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        assert "its chat template does not write one image" in self.refusal(copy)

    def test_weights_that_lack_one(self, copy):
        from safetensors.torch import load_file, save_file

        weights = load_file(copy / "model.safetensors")
        del weights["model.visual.merger.norm.weight"]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "lack model.visual.merger.norm.weight" in self.refusal(copy)

    def test_a_tokenizer_of_another_model(self, copy):
        tokenizer = load_reader(copy, reward="test").tokenizer
        tokenizer.add_tokens([f"word{number}" for number in range(9)])
        tokenizer.save_pretrained(copy)
        assert "they do not belong together" in self.refusal(copy)

    def test_images_that_are_too_narrow(self, folders):
        model = load_qwen_vl(folders["qwen3_vl"], reward="test", dtype="float32")
        with pytest.raises(RewardError, match="images of 2 × 900 are too narrow for the model"):
            model.write(noise(1, 2, 900), ["a cat"], 1)
