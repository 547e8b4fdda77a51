import functools
import json
import shutil

import pytest
import small_vlms
import torch

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.judges import JUDGES, JudgeSettings
from rlcm_cli.rewards.judges.local import MODEL

QUESTIONS = ["how many tigers are there in this image?"] * 5 + ["answer concisely: what is going on?"] * 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlms")
    small_vlms.make_llava(folder / "llava")
    small_vlms.make_idefics3(folder / "idefics3")
    return folder


@pytest.fixture(params=["llava", "idefics3"])
def folder(folders, request):
    return folders / request.param


@pytest.fixture
def copy(folders, tmp_path):
    """A model of one's own, to be damaged."""
    return shutil.copytree(folders / "llava", tmp_path / "llava")


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, 24, 20), dtype=torch.uint8, generator=generator)


def settings(folder, **values) -> JudgeSettings:
    return JudgeSettings(judge="local", model=str(folder), max_tokens=8, **values)


def judge(folder, **values):
    return JUDGES["local"].make(settings(folder, **values), "vqa")


@functools.cache
def load_by_hand(folder):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()


def answer_by_hand(folder, image, question) -> str:
    """Greedy decoding of one image, token by token, without `generate`, padding or a cache."""
    from PIL import Image

    processor, model = load_by_hand(folder)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    inputs = processor(text=text, images=[picture], return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    with torch.no_grad():
        for _ in range(8):
            token = model(**inputs).logits[:, -1:].argmax(-1)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if token.item() == processor.tokenizer.eos_token_id:
                break
    return processor.tokenizer.decode(inputs["input_ids"][0, start:], skip_special_tokens=True).strip()


class TestAnswers:
    def test_they_are_the_greedy_ones(self, folder):
        batch = images(10)
        answers = judge(folder)(batch, QUESTIONS)
        expected = [answer_by_hand(folder, *pair) for pair in zip(batch, QUESTIONS, strict=True)]
        assert answers == expected
        assert len(set(answers)) >= 8

    def test_a_batch_of_other_sizes_changes_nothing(self, folder):
        batch, asked = images(10), judge(folder)
        single = [asked(batch[row : row + 1], [QUESTIONS[row]])[0] for row in range(10)]
        assert asked(batch, QUESTIONS) == single

    def test_max_tokens_ends_an_answer(self, folders):
        asked = JUDGES["local"].make(JudgeSettings(judge="local", model=str(folders / "llava"), max_tokens=2), "vqa")
        assert all(len(answer.split()) <= 2 for answer in asked(images(3), QUESTIONS[:3]))

    def test_no_images_have_no_answers(self, folders):
        assert judge(folders / "llava")(images(0), []) == []

    def test_loading_and_answering_print_nothing(self, folder, capfd):
        judge(folder)(images(2), QUESTIONS[:2])
        assert capfd.readouterr() == ("", "")

    def test_the_weights_get_the_dtype(self, folders):
        assert judge(folders / "llava", dtype="bfloat16")._model.dtype == torch.bfloat16
        assert judge(folders / "llava")._model.dtype == torch.float32


class TestJudgesThatCannotBeUsed:
    def refusal(self, folder) -> str:
        with pytest.raises(RewardError) as caught:
            judge(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_an_empty_folder(self, tmp_path):
        assert "cannot be used as an image-text-to-text model" in self.refusal(tmp_path)

    def test_a_model_of_another_kind(self, copy):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
        assert "cannot be loaded as an image-text-to-text model" in self.refusal(copy)

    def test_missing_weights(self, copy):
        from safetensors.torch import load_file, save_file

        weights = load_file(copy / "model.safetensors")
        removed = next(name for name in weights if "multi_modal_projector" in name)
        del weights[removed]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "lack model.multi_modal_projector" in self.refusal(copy)

    def test_cut_off_weights(self, copy):
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        assert "cannot be loaded" in self.refusal(copy)

    def test_no_chat_template(self, copy):
        (copy / "chat_template.jinja").unlink()
        assert "has no chat template" in self.refusal(copy)

    def test_a_processor_that_needs_torchvision(self, copy, monkeypatch):
        import transformers

        def from_pretrained(*args, **kwargs):
            raise ImportError("\nX requires the Torchvision library but it was not found in your environment.")

        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", from_pretrained)
        message = self.refusal(copy)
        assert "requires the Torchvision library" in message
        assert f"choose a judge whose processor does without, such as {MODEL.source}" in message

    def test_an_unreachable_hub(self, monkeypatch):
        import huggingface_hub

        def snapshot_download(*args, **kwargs):
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        message = self.refusal(MODEL.source)
        assert f"hf download {MODEL.source}" in message
        assert "(14 GB)" in message
        assert "reward_settings.vqa.model=DIR" in message
        obstacle = JUDGES["local"].find_obstacle(JudgeSettings(judge="local"), "vqa")
        assert f"hf download {MODEL.source}" in obstacle

    def test_a_folder_is_no_obstacle(self, folders):
        assert JUDGES["local"].find_obstacle(settings(folders / "llava"), "vqa") is None

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
    def test_another_file_is_another_revision(self, copy, name):
        before = JUDGES["local"].revise(settings(copy), "vqa")
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        assert JUDGES["local"].revise(settings(copy), "vqa") != before
