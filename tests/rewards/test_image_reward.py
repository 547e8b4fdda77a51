"""ImageReward on a small random checkpoint of its own layout, against its forward written out here in plain torch."""

import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_clip import assert_any_split, cut_off_hub, images, load, obstacle, refusal, revision, score
from torch.nn.functional import conv2d, gelu, layer_norm, linear, softmax

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.image_reward import image_reward

PROMPTS = ["a cat", "a red dog, on blue", "two cats", "a cat [ENC]", "z"]
VISION_WIDTH, TEXT_WIDTH, LAYERS, HEAD_WIDTH, PATCH, EDGE = 192, 128, 2, 64, 8, 32
MEAN, STD = 0.16717362830052426, 1.0333394966054072


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """BERT's tokenizer with one token a letter."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, ",", "[", "]"]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters)]
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tokenizer):
    """A random state dict with the names and shapes of ImageReward.pt."""
    from transformers import BertTokenizer

    generator = torch.Generator().manual_seed(0)
    found = {}

    def random(name, *shape):
        found[name] = torch.randn(*shape, generator=generator) / (shape[-1] ** 0.5 if len(shape) > 1 else 5)

    def layer(name, outputs, inputs):
        random(f"{name}.weight", outputs, inputs)
        random(f"{name}.bias", outputs)

    def norm(name, width):
        random(f"{name}.weight", width)
        found[f"{name}.weight"] += 1
        random(f"{name}.bias", width)

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    random(f"{vision}.cls_token", 1, 1, VISION_WIDTH)
    random(f"{vision}.pos_embed", 1, (EDGE // PATCH) ** 2 + 1, VISION_WIDTH)
    random(f"{vision}.patch_embed.proj.weight", VISION_WIDTH, 3, PATCH, PATCH)
    random(f"{vision}.patch_embed.proj.bias", VISION_WIDTH)
    for index in range(LAYERS):
        block = f"{vision}.blocks.{index}"
        norm(f"{block}.norm1", VISION_WIDTH)
        norm(f"{block}.norm2", VISION_WIDTH)
        layer(f"{block}.attn.qkv", 3 * VISION_WIDTH, VISION_WIDTH)
        layer(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        layer(f"{block}.mlp.fc1", 96, VISION_WIDTH)
        layer(f"{block}.mlp.fc2", VISION_WIDTH, 96)
    norm(f"{vision}.norm", VISION_WIDTH)

    found[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    vocabulary = len(BertTokenizer.from_pretrained(tokenizer)) + 2
    random(f"{text}.embeddings.word_embeddings.weight", vocabulary, TEXT_WIDTH)
    random(f"{text}.embeddings.position_embeddings.weight", 40, TEXT_WIDTH)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for index in range(LAYERS):
        block = f"{text}.encoder.layer.{index}"
        for kind, width in (("attention", TEXT_WIDTH), ("crossattention", VISION_WIDTH)):
            layer(f"{block}.{kind}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            layer(f"{block}.{kind}.self.key", TEXT_WIDTH, width)
            layer(f"{block}.{kind}.self.value", TEXT_WIDTH, width)
            layer(f"{block}.{kind}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{block}.{kind}.output.LayerNorm", TEXT_WIDTH)
        layer(f"{block}.intermediate.dense", 96, TEXT_WIDTH)
        layer(f"{block}.output.dense", TEXT_WIDTH, 96)
        norm(f"{block}.output.LayerNorm", TEXT_WIDTH)

    layer("blip.vision_proj", 16, VISION_WIDTH)  # of BLIP's retrieval, unused
    layer("blip.text_proj", 16, TEXT_WIDTH)
    widths = [TEXT_WIDTH, 32, 16, 8, 4, 1]
    for number, index in enumerate((0, 2, 4, 6, 7)):
        layer(f"mlp.layers.{index}", widths[number + 1], widths[number])
    return found


@pytest.fixture(params=["pt", "safetensors"])
def checkpoint(request, weights, tmp_path):
    path = tmp_path / f"ImageReward.{request.param}"
    (torch.save if request.param == "pt" else save_file)(weights, path)
    return path


def settings(checkpoint, tokenizer):
    return {"checkpoint": str(checkpoint), "tokenizer": str(tokenizer)}


def original_rewards(weights, pixels, tokens):
    """ImageReward's forward: timm's ViT, then BERT whose layers attend to the words, then to the patches."""

    def parts(name):
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def norm(x, name, epsilon):
        return layer_norm(x, x.shape[-1:], *parts(name), epsilon)

    def attend(q, k, v, mask):
        q, k, v = (x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for x in (q, k, v))
        return (softmax(q @ k.transpose(-1, -2) / HEAD_WIDTH**0.5 + mask, dim=-1) @ v).transpose(1, 2).flatten(2)

    vision, text, none = "blip.visual_encoder", "blip.text_encoder", torch.zeros(())
    seen = conv2d(pixels, *parts(f"{vision}.patch_embed.proj"), stride=PATCH).flatten(2).transpose(1, 2)
    seen = torch.cat([weights[f"{vision}.cls_token"].expand(len(seen), -1, -1), seen], dim=1)
    seen = seen + weights[f"{vision}.pos_embed"]
    for index in range(LAYERS):
        block = f"{vision}.blocks.{index}"
        fused = linear(norm(seen, f"{block}.norm1", 1e-6), *parts(f"{block}.attn.qkv"))
        seen = seen + linear(attend(*fused.chunk(3, dim=-1), none), *parts(f"{block}.attn.proj"))
        hidden = gelu(linear(norm(seen, f"{block}.norm2", 1e-6), *parts(f"{block}.mlp.fc1")))
        seen = seen + linear(hidden, *parts(f"{block}.mlp.fc2"))
    seen = norm(seen, f"{vision}.norm", 1e-6)

    words = weights[f"{text}.embeddings.word_embeddings.weight"][tokens["input_ids"]]
    read = words + weights[f"{text}.embeddings.position_embeddings.weight"][: words.shape[1]]
    read = norm(read, f"{text}.embeddings.LayerNorm", 1e-12)
    padding = torch.where(tokens["attention_mask"].bool(), 0.0, -torch.inf)[:, None, None]
    for index in range(LAYERS):
        block = f"{text}.encoder.layer.{index}"
        for kind, source, mask in (("attention", None, padding), ("crossattention", seen, none)):
            source = read if source is None else source
            q, k, v = (
                linear(x, *parts(f"{block}.{kind}.self.{name}"))
                for x, name in ((read, "query"), (source, "key"), (source, "value"))
            )
            mixed = linear(attend(q, k, v, mask), *parts(f"{block}.{kind}.output.dense"))
            read = norm(read + mixed, f"{block}.{kind}.output.LayerNorm", 1e-12)
        hidden = gelu(linear(read, *parts(f"{block}.intermediate.dense")))
        read = norm(read + linear(hidden, *parts(f"{block}.output.dense")), f"{block}.output.LayerNorm", 1e-12)

    reward = read[:, 0]
    for index in (0, 2, 4, 6, 7):
        reward = linear(reward, *parts(f"mlp.layers.{index}"))
    return (reward[:, 0] - MEAN) / STD


def expected(weights, tokenizer, batch, prompts):
    from transformers import BertTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    bert = BertTokenizer.from_pretrained(tokenizer)
    bert.add_special_tokens({"bos_token": "[DEC]"})
    bert.add_tokens(["[ENC]"], special_tokens=True)
    tokens = bert(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    processor = CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE})
    return original_rewards(weights, processor(list(batch), return_tensors="pt")["pixel_values"], tokens)


class TestValues:
    def test_it_is_the_original_forward(self, checkpoint, tokenizer, weights):
        batch, prompts = images(6), [*PROMPTS, "a very long prompt " * 10]
        rewards = score("image_reward", batch, prompts, **settings(checkpoint, tokenizer))
        torch.testing.assert_close(rewards, expected(weights, tokenizer, batch, prompts), rtol=0, atol=1e-5)
        assert rewards.std() > 0.05

    def test_image_and_prompt_both_count(self, checkpoint, tokenizer):
        reward = load("image_reward", **settings(checkpoint, tokenizer))
        batch = images(2)
        rewards = reward.score(batch[[0, 0, 1, 1]], ["a cat", "a dog"] * 2, [{}] * 4)
        differences = (rewards[:, None] - rewards).abs() + torch.eye(4)
        assert differences.min() > 1e-3

    def test_the_factory_takes_paths(self, checkpoint, tokenizer):
        batch, prompts = images(2), ["a cat", "a dog"]
        expected = score("image_reward", batch, prompts, **settings(checkpoint, tokenizer))
        assert torch.equal(image_reward(Path(checkpoint), Path(tokenizer))(batch, prompts, []), expected)

    def test_any_batch_split_gives_the_same(self, checkpoint, tokenizer):
        reward = load("image_reward", **settings(checkpoint, tokenizer))
        assert_any_split(reward, images(65), [*PROMPTS] * 13, tolerance=1e-5)

    def test_half_precision_weights_are_computed_in_float32(self, weights, tokenizer, tmp_path):
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        torch.save(half, tmp_path / "half.pt")
        batch, full = images(5), {name: tensor.float() for name, tensor in half.items()}
        rewards = score("image_reward", batch, PROMPTS, **settings(tmp_path / "half.pt", tokenizer))
        torch.testing.assert_close(rewards, expected(full, tokenizer, batch, PROMPTS), rtol=0, atol=1e-5)

    def test_loading_and_scoring_print_nothing(self, checkpoint, tokenizer, capfd):
        score("image_reward", images(1), ["a cat"], **settings(checkpoint, tokenizer))
        assert capfd.readouterr() == ("", "")


class TestCheckpointsThatCannotBeUsed:
    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"blip.visual_encoder.blocks.1.attn.qkv.bias": None}, "lack encoder.layers.1.self_attn.qkv.bias"),
            ({"blip.text_encoder.encoder.layer.1.crossattention.self.key.weight": None}, "lack encoder.layer.1.cross"),
            (
                {"blip.visual_encoder.pos_embed": None},
                "not a checkpoint of ImageReward ('embeddings.position_embedding')",
            ),
            (
                {"blip.text_encoder.pooler.dense.weight": torch.zeros(4, 4)},
                "holds pooler.dense.weight, which the BlipText",
            ),
            (
                {"blip.visual_encoder.blocks.0.gamma": torch.zeros(4)},
                "holds encoder.layers.0.gamma, which the BlipVision",
            ),
            ({"blip.visual_encoder.norm.weight": torch.zeros(4)}, "cannot be loaded into a BlipVisionModel"),
            ({"mlp.layers.7.bias": None}, "not layers.I.weight and layers.I.bias"),
        ],
    )
    def test_another_architecture(self, weights, tokenizer, tmp_path, change, complaint):
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        torch.save(changed, tmp_path / "other.pt")
        assert complaint in refusal(RewardError, "image_reward", **settings(tmp_path / "other.pt", tokenizer))

    def test_weights_of_something_else(self, tokenizer, tmp_path):
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
        message = refusal(RewardError, "image_reward", **settings(tmp_path / "other.pt", tokenizer))
        assert "is not a checkpoint of ImageReward" in message

    def test_a_tokenizer_of_another_model(self, weights, tokenizer, tmp_path):
        name = "blip.text_encoder.embeddings.word_embeddings.weight"
        torch.save({**weights, name: weights[name][:-1]}, tmp_path / "other.pt")
        message = refusal(RewardError, "image_reward", **settings(tmp_path / "other.pt", tokenizer))
        assert "set tokenizer to google-bert/bert-base-uncased" in message

    def test_a_missing_tokenizer(self, checkpoint, tmp_path):
        (tmp_path / "empty").mkdir()
        message = refusal(RewardError, "image_reward", **settings(checkpoint, tmp_path / "empty"))
        assert "holds no tokenizer" in message

    def test_a_missing_hub(self, monkeypatch, checkpoint, tokenizer):
        cut_off_hub(monkeypatch)
        message = refusal(RewardError, "image_reward", tokenizer=str(tokenizer))
        assert "hf download THUDM/ImageReward ImageReward.pt --local-dir DIR` (1.8 GB)" in message
        assert "--set reward_settings.image_reward.checkpoint=DIR/ImageReward.pt" in message
        message = refusal(RewardError, "image_reward", checkpoint=str(checkpoint))
        assert "hf download google-bert/bert-base-uncased" in message
        assert "--set reward_settings.image_reward.tokenizer=DIR" in message

    def test_obstacles(self, monkeypatch, checkpoint, tokenizer):
        cut_off_hub(monkeypatch)
        assert obstacle("image_reward", **settings(checkpoint, tokenizer)) is None
        assert "ImageReward.pt is not here" in obstacle("image_reward")
        assert "tokenizer 'google-bert/" in obstacle("image_reward", checkpoint=str(checkpoint))

    def test_a_checkpoint_that_is_no_text(self, tokenizer):
        assert "must be a file or" in refusal(
            ConfigError, "image_reward", **{**settings(1, tokenizer), "checkpoint": 1}
        )


def test_checkpoint_and_tokenizer_are_part_of_the_revision(weights, tokenizer, tmp_path):
    torch.save(weights, tmp_path / "one.pt")
    torch.save({**weights, "mlp.layers.7.bias": torch.ones(1)}, tmp_path / "two.pt")
    one, two = (settings(tmp_path / f"{name}.pt", tokenizer) for name in ("one", "two"))
    assert revision("image_reward", **one) != revision("image_reward", **two)
