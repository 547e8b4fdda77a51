import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_clip import (
    CONTEXT,
    assert_any_split,
    cut_off_hub,
    images,
    load,
    obstacle,
    refusal,
    revision,
    save_small_clip,
    score,
)

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.base import weights
from rlcm_cli.rewards.clip_score import clip_score

PROMPTS = ["a cat", "a red dog, on blue", "two cats", "a cat", "z"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def broken(clip, tmp_path):
    """A model of one's own, to be damaged."""
    return shutil.copytree(clip, tmp_path / "clip")


def logits(folder, batch, prompts):
    """100 cos as transformers computes it, by its own preprocessing."""
    from PIL import Image
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(
        prompts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch]
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixel_values=pixels, **tokens).logits_per_image.diagonal() / model.logit_scale.exp() * 100


class TestValues:
    def test_it_is_a_hundred_times_the_cosine(self, clip):
        batch = images(5)
        rewards = score("clip_score", batch, PROMPTS, model=str(clip))
        torch.testing.assert_close(rewards, logits(clip, batch, PROMPTS), rtol=0, atol=1e-4)
        assert rewards.std() > 1

    def test_the_factory_takes_a_folder(self, clip):
        batch = images(5)
        assert torch.equal(clip_score(clip)(batch, PROMPTS, []), score("clip_score", batch, PROMPTS, model=str(clip)))

    def test_other_sizes_are_resized_and_cropped(self, clip):
        batch = images(5, 100, 71)
        rewards = score("clip_score", batch, PROMPTS, model=str(clip))
        torch.testing.assert_close(rewards, logits(clip, batch, PROMPTS), rtol=0, atol=0.05)

    def test_any_batch_split_gives_the_same(self, clip):
        assert_any_split(load("clip_score", model=str(clip)), images(70), [*PROMPTS] * 14, tolerance=1e-4)

    def test_a_negative_cosine_is_not_cut(self, clip, broken):
        tensors = load_file(broken / "model.safetensors")
        tensors["visual_projection.weight"] *= -1
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        batch = images(5)
        rewards = score("clip_score", batch, PROMPTS, model=str(broken))
        torch.testing.assert_close(rewards, -score("clip_score", batch, PROMPTS, model=str(clip)), rtol=0, atol=1e-5)

    def test_prompts_are_cut_at_the_context(self, clip):
        # Start and end take two of the tokens, a letter one.
        prompts = ["a" * (CONTEXT - 2), "a" * (CONTEXT - 2) + " whatever comes" * 20, "a" * (CONTEXT - 3)]
        same, also, other = score("clip_score", images(1).expand(3, -1, -1, -1), prompts, model=str(clip)).tolist()
        assert same == pytest.approx(also, abs=1e-4)
        assert abs(same - other) > 0.1

    def test_no_gradient_is_kept(self, clip):
        assert not load("clip_score", model=str(clip)).function(images(1), ["a cat"], [{}]).requires_grad

    def test_loading_and_scoring_print_nothing(self, clip, capfd):
        score("clip_score", images(1), ["a cat"], model=str(clip))
        assert capfd.readouterr() == ("", "")

    def test_a_vision_text_dual_encoder_is_as_good(self, clip, tmp_path):
        from transformers import CLIPTextModel, CLIPVisionModel, VisionTextDualEncoderModel

        shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
        torch.manual_seed(1)
        parts = CLIPVisionModel.from_pretrained(clip), CLIPTextModel.from_pretrained(clip)
        model = VisionTextDualEncoderModel(vision_model=parts[0], text_model=parts[1]).eval()
        model.save_pretrained(tmp_path)
        assert score("clip_score", images(5), PROMPTS, model=str(tmp_path)).std() > 0.1


class TestModelsThatCannotBeUsed:
    def test_a_missing_hub(self, monkeypatch):
        cut_off_hub(monkeypatch)
        message = refusal(RewardError, "clip_score")
        assert "the hub does not give it (HF_HUB_OFFLINE is set; no local copy of" in message
        assert "hf download openai/clip-vit-large-patch14 --include 'config.json'" in message
        assert "(1.7 GB)" in message
        assert "--set reward_settings.clip_score.model=DIR" in message
        assert "hf download" in obstacle("clip_score")

    def test_a_folder_that_is_here_is_no_obstacle(self, clip):
        assert obstacle("clip_score", model=str(clip)) is None

    def test_an_empty_folder(self, tmp_path):
        message = refusal(RewardError, "clip_score", model=str(tmp_path))
        assert "cannot be loaded as a contrastive image-text model" in message

    def test_a_model_without_a_vision_tower(self, clip, broken):
        from transformers import CLIPTextModel

        CLIPTextModel.from_pretrained(clip).save_pretrained(broken)
        assert "CLIPTextModel, which does not embed both" in refusal(RewardError, "clip_score", model=str(broken))

    def test_weights_that_transformers_would_make_up(self, broken):
        tensors = load_file(broken / "model.safetensors")
        del tensors["text_projection.weight"], tensors["visual_projection.weight"]
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        message = refusal(RewardError, "clip_score", model=str(broken))
        assert "lack text_projection.weight and 1 more" in message

    def test_pickled_weights_are_not_touched(self, broken):
        torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
        (broken / "model.safetensors").unlink()
        assert "cannot be loaded" in refusal(RewardError, "clip_score", model=str(broken))

    def test_cut_off_weights(self, broken):
        path = broken / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        assert "cannot be loaded" in refusal(RewardError, "clip_score", model=str(broken))

    def test_a_missing_tokenizer(self, broken):
        for path in broken.glob("tokenizer*"):
            path.unlink()
        assert "holds no tokenizer; it needs tokenizer.json, or vocab.json and merges.txt" in refusal(
            RewardError, "clip_score", model=str(broken)
        )

    def test_a_damaged_tokenizer(self, broken):
        (broken / "tokenizer.json").write_text("{}")
        assert "the tokenizer in" in refusal(RewardError, "clip_score", model=str(broken))

    def test_a_tokenizer_of_another_model(self, broken):
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(broken)
        tokenizer.add_tokens(["cat"])
        tokenizer.save_pretrained(broken)
        assert "tokens, and the model knows" in refusal(RewardError, "clip_score", model=str(broken))

    def test_a_processor_of_another_model(self, broken):
        path = broken / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "size": 48, "crop_size": 40}))
        assert "makes images of 40 × 40, and the model takes 32 × 32" in refusal(
            RewardError, "clip_score", model=str(broken)
        )

    @pytest.mark.parametrize("model", [7, ""])
    def test_a_model_that_is_no_text(self, model):
        assert "must be a folder or a hub id" in refusal(ConfigError, "clip_score", model=model)


class TestEmojiClip:
    def test_it_is_clip_score_with_the_embedded_model(self, clip, monkeypatch, tmp_path):
        (tmp_path / "emoji_clip").symlink_to(clip)
        monkeypatch.setattr(weights, "_PACKAGE", tmp_path)
        batch = images(5)
        assert torch.equal(score("emoji_clip", batch, PROMPTS), score("clip_score", batch, PROMPTS, model=str(clip)))

    def test_a_broken_installation(self, monkeypatch, tmp_path):
        monkeypatch.setattr(weights, "_PACKAGE", tmp_path)
        assert "is missing from this installation" in refusal(RewardError, "emoji_clip")


def test_another_file_is_another_revision(broken):
    revisions = {revision("clip_score", model=str(broken))}
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        path = broken / name
        path.write_bytes(path.read_bytes() + b" ")
        revisions.add(revision("clip_score", model=str(broken)))
    assert len(revisions) == 5


def test_naming_the_rewards_loads_no_library():
    code = (
        "import sys; from rlcm_cli.rewards import REWARDS; assert len(REWARDS) > 18; "
        "print({'torch', 'transformers', 'PIL', 'numpy', 'huggingface_hub', 'safetensors'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
