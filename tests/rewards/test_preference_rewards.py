"""PickScore and HPS v2 on small random models; HPS against open_clip's forward, written out here in plain torch."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_clip import (
    CONTEXT,
    EDGE,
    WIDTHS,
    assert_any_split,
    clip_config,
    cut_off_hub,
    images,
    load,
    obstacle,
    refusal,
    revision,
    save_processor,
    save_small_clip,
    score,
)
from torch.nn.functional import conv2d, gelu, layer_norm, linear, normalize, softmax

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.rewards.networks.open_clip import map_open_clip
from rlcm_cli.rewards.networks.prompt_cleaning import clean_prompt
from rlcm_cli.rewards.preference import CLIP_H14, pick_score

PROMPTS = ["a cat", "a red dog, on blue", "two cats", "a cat", "z"]
VISION_WIDTH, TEXT_WIDTH, LAYERS, HEADS, PATCH = WIDTHS["hidden_size"], 16, 2, 4, 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """As on the hub: weights in one repository, tokenizer and preprocessing in another."""
    whole = save_small_clip(tmp_path_factory.mktemp("whole"))
    weights = tmp_path_factory.mktemp("weights")
    for name in ("config.json", "model.safetensors"):
        shutil.move(whole / name, weights)
    shutil.copy(weights / "config.json", whole)
    return {"model": str(weights), "processor": str(whole)}


class TestPickScore:
    def test_it_is_the_models_own_logit(self, folders):
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        batch = images(5)
        tokens = CLIPTokenizer.from_pretrained(folders["processor"])(PROMPTS, padding=True, return_tensors="pt")
        processor = CLIPImageProcessorPil.from_pretrained(folders["processor"])
        pixels = processor(list(batch), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = CLIPModel.from_pretrained(folders["model"]).eval()(pixel_values=pixels, **tokens).logits_per_image
        rewards = score("pick_score", batch, PROMPTS, **folders)
        torch.testing.assert_close(rewards, logits.diagonal(), rtol=0, atol=1e-4)
        assert rewards.std() > 0.1

    def test_the_factory_takes_folders(self, folders):
        batch = images(5)
        function = pick_score(*map(Path, folders.values()))
        assert torch.equal(function(batch, PROMPTS, []), score("pick_score", batch, PROMPTS, **folders))
        assert CLIP_H14.requirement == "the processor of laion/CLIP-ViT-H-14-laion2B-s32B-b79K (4 MB)"

    def test_any_batch_split_gives_the_same(self, folders):
        assert_any_split(load("pick_score", **folders), images(65), [*PROMPTS] * 13, tolerance=1e-4)

    def test_a_missing_hub(self, monkeypatch, folders):
        cut_off_hub(monkeypatch)
        message = refusal(RewardError, "pick_score", processor=folders["processor"])
        assert "hf download yuvalkirstain/PickScore_v1" in message
        assert "(3.9 GB)" in message
        assert "--set reward_settings.pick_score.model=DIR" in message
        # The processor is looked for first: it is small, and a mistake in it shows before gigabytes are fetched.
        for settings in ({}, {"model": folders["model"]}):
            message = refusal(RewardError, "pick_score", **settings)
            assert "hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in message
            assert "--set reward_settings.pick_score.processor=DIR" in message

    def test_obstacles(self, monkeypatch, folders):
        cut_off_hub(monkeypatch)
        assert obstacle("pick_score", **folders) is None
        assert "model 'yuvalkirstain/PickScore_v1' is not here" in obstacle("pick_score")
        assert "processor 'laion/" in obstacle("pick_score", model=folders["model"])

    def test_weights_without_a_processor(self, folders):
        message = refusal(RewardError, "pick_score", model=folders["model"], processor=folders["model"])
        assert "preprocessor_config.json cannot be read" in message

    def test_the_processor_is_part_of_the_revision(self, folders, tmp_path):
        other = shutil.copytree(folders["processor"], tmp_path / "other")
        (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b" ")
        assert revision("pick_score", **folders) != revision("pick_score", **{**folders, "processor": str(other)})

    @pytest.mark.parametrize("setting", ["model", "processor"])
    def test_a_setting_that_is_no_text(self, folders, setting):
        message = refusal(ConfigError, "pick_score", **{**folders, setting: None})
        assert f"{setting} None must be a folder or a hub id" in message


def open_clip_weights(vocabulary):
    """A random state dict with open_clip's names and shapes of a ViT CLIP."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    def norm(name, width):
        return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}

    def tower(prefix, width):
        weights = {}
        for index in range(LAYERS):
            block = f"{prefix}transformer.resblocks.{index}"
            weights |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
            weights |= {
                f"{block}.attn.in_proj_weight": random(3 * width, width),
                f"{block}.attn.in_proj_bias": random(3 * width),
                f"{block}.attn.out_proj.weight": random(width, width),
                f"{block}.attn.out_proj.bias": random(width),
                f"{block}.mlp.c_fc.weight": random(48, width),
                f"{block}.mlp.c_fc.bias": random(48),
                f"{block}.mlp.c_proj.weight": random(width, 48),
                f"{block}.mlp.c_proj.bias": random(width),
            }
        return weights

    return {
        "logit_scale": torch.tensor(4.6052),
        "positional_embedding": random(CONTEXT, TEXT_WIDTH),
        "text_projection": random(TEXT_WIDTH, WIDTHS["projection_dim"]),
        "token_embedding.weight": random(vocabulary, TEXT_WIDTH),
        **tower("", TEXT_WIDTH),
        **norm("ln_final", TEXT_WIDTH),
        "visual.class_embedding": random(VISION_WIDTH),
        "visual.positional_embedding": random((EDGE // PATCH) ** 2 + 1, VISION_WIDTH),
        "visual.proj": random(VISION_WIDTH, WIDTHS["projection_dim"]),
        "visual.conv1.weight": random(VISION_WIDTH, 3, PATCH, PATCH),
        **norm("visual.ln_pre", VISION_WIDTH),
        **tower("visual.", VISION_WIDTH),
        **norm("visual.ln_post", VISION_WIDTH),
    }


def open_clip_cosines(weights, pixels, tokens):
    """open_clip's CLIP: pre-norm blocks, exact GELU, class token and end token, projections from the right."""

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attention(x, name, mask):
        count, length, width = x.shape
        fused = linear(x, weights[f"{name}.in_proj_weight"], weights[f"{name}.in_proj_bias"])
        q, k, v = fused.view(count, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        weight = softmax(q @ k.transpose(-1, -2) / (width // HEADS) ** 0.5 + mask, dim=-1)
        mixed = (weight @ v).transpose(1, 2).reshape(count, length, width)
        return linear(mixed, weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"])

    def tower(x, prefix, mask):
        for index in range(LAYERS):
            block = f"{prefix}transformer.resblocks.{index}"
            x = x + attention(norm(x, f"{block}.ln_1"), f"{block}.attn", mask)
            hidden = gelu(linear(norm(x, f"{block}.ln_2"), *parts(f"{block}.mlp.c_fc")))
            x = x + linear(hidden, *parts(f"{block}.mlp.c_proj"))
        return x

    def parts(name):
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    patches = conv2d(pixels, weights["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = weights["visual.class_embedding"].expand(len(pixels), 1, -1)
    seen = torch.cat([first, patches], dim=1) + weights["visual.positional_embedding"]
    seen = tower(norm(seen, "visual.ln_pre"), "visual.", torch.zeros(()))
    image = norm(seen[:, 0], "visual.ln_post") @ weights["visual.proj"]

    causal = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
    read = tower(weights["token_embedding.weight"][tokens] + weights["positional_embedding"], "", causal)
    text = norm(read, "ln_final")[torch.arange(len(tokens)), tokens.argmax(-1)] @ weights["text_projection"]
    return (normalize(image, dim=-1) * normalize(text, dim=-1)).sum(-1)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    vocabulary = save_processor(folder)
    clip_config(vocabulary, hidden_act="gelu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(processor):
    from transformers import CLIPTokenizer

    return open_clip_weights(len(CLIPTokenizer.from_pretrained(processor)))


class TestHps:
    @pytest.fixture(params=["pt", "safetensors"])
    def checkpoint(self, request, weights, tmp_path):
        if request.param == "safetensors":
            save_file(weights, tmp_path / "HPS_v2.1_compressed.safetensors")
            return tmp_path / "HPS_v2.1_compressed.safetensors"
        path = tmp_path / "HPS_v2.1_compressed.pt"
        torch.save({"epoch": 1, "name": "hps", "state_dict": weights}, path)
        return path

    def settings(self, checkpoint, processor):
        return {"checkpoint": str(checkpoint), "processor": str(processor)}

    def expected(self, weights, processor, batch, prompts):
        from transformers import CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        tokenizer = CLIPTokenizer.from_pretrained(processor)
        tokens = torch.zeros(len(prompts), CONTEXT, dtype=torch.int64)  # open_clip pads with 0
        for row, prompt in enumerate(prompts):
            numbers = tokenizer(prompt).input_ids
            numbers = numbers if len(numbers) <= CONTEXT else [*numbers[: CONTEXT - 1], numbers[-1]]
            tokens[row, : len(numbers)] = torch.tensor(numbers)
        pixels = CLIPImageProcessorPil.from_pretrained(processor)(list(batch), return_tensors="pt")["pixel_values"]
        return open_clip_cosines(weights, pixels, tokens)

    def test_it_is_open_clips_cosine(self, checkpoint, processor, weights):
        batch, prompts = images(6), [*PROMPTS, "a very long prompt that goes past the context"]
        rewards = score("hps_v2", batch, prompts, **self.settings(checkpoint, processor))
        torch.testing.assert_close(rewards, self.expected(weights, processor, batch, prompts), rtol=0, atol=1e-5)
        assert rewards.std() > 0.05

    def test_an_image_that_is_not_square_is_fitted_into_black(self, checkpoint, processor):
        """As hpsv2 does it: of a wide image nothing is cut off."""
        settings = self.settings(checkpoint, processor)
        wide = images(2)[:, :, ::2]
        height, width = wide.shape[2:]
        padded = torch.nn.functional.pad(wide, (0, 0, (width - height) // 2, width - height - (width - height) // 2))
        torch.testing.assert_close(
            score("hps_v2", wide, PROMPTS[:2], **settings),
            score("hps_v2", padded, PROMPTS[:2], **settings),
            rtol=0,
            atol=1e-2,
        )

    @pytest.mark.parametrize(
        ("prompt", "cleaned"),
        [
            ("it’s a “cat”", 'it\'s a "cat"'),
            ("ａ ｃａｔ", "a cat"),
            ("a ﬁne cat", "a fine cat"),
            ("a cat &amp; a dog", "a cat & a dog"),
            ("a cat &amp;amp; a dog", "a cat & a dog"),
            ("  a \n cat\t ", "a cat"),
            ("cafÃ©", "café"),
            ("a cat's &rsquo;hat&rsquo;", "a cat's 'hat'"),
        ],
    )
    def test_prompts_are_cleaned_as_published(self, prompt, cleaned):
        """The right column: whitespace_clean(basic_clean(prompt)) of open_clip's tokenizer."""
        assert clean_prompt(prompt, reward="hps_v2") == cleaned

    def test_the_reward_sees_the_cleaned_prompt(self, checkpoint, processor):
        reward, batch = load("hps_v2", **self.settings(checkpoint, processor)), images(1)
        pairs = [("ａ ｃａｔ", "a cat"), ("a cat &amp; a dog", "a cat & a dog")]
        for prompt, cleaned in pairs:
            assert torch.equal(reward.score(batch, [prompt], [{}]), reward.score(batch, [cleaned], [{}]))

    def test_without_ftfy_only_what_needs_it_is_refused(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ftfy", None)
        assert clean_prompt("a cat &amp; a dog", reward="hps_v2") == "a cat & a dog"
        for prompt in ("it’s", "&rsquo;", "a\x1b[31mcat"):
            with pytest.raises(RewardError, match="install it \\(`pip install ftfy`\\)"):
                clean_prompt(prompt, reward="hps_v2")

    def test_half_precision_weights_are_computed_in_float32(self, processor, weights, tmp_path):
        half = {name: tensor.half() for name, tensor in weights.items()}
        torch.save({"state_dict": half}, tmp_path / "half.pt")
        batch = images(5)
        rewards = score("hps_v2", batch, PROMPTS, **self.settings(tmp_path / "half.pt", processor))
        expected = self.expected({name: tensor.float() for name, tensor in half.items()}, processor, batch, PROMPTS)
        torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)

    def test_any_batch_split_gives_the_same(self, checkpoint, processor):
        reward = load("hps_v2", **self.settings(checkpoint, processor))
        assert_any_split(reward, images(65), [*PROMPTS] * 13, tolerance=1e-5)

    def test_every_weight_has_its_place(self, weights, processor):
        from transformers import CLIPConfig, CLIPModel

        expected = CLIPModel(CLIPConfig.from_pretrained(processor)).state_dict()
        mapped = map_open_clip(weights)
        assert {name: tensor.shape for name, tensor in mapped.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"visual.proj": None}, "lack visual_projection.weight"),
            ({"transformer.resblocks.1.ln_2.bias": None}, "lack text_model.encoder.layers.1.layer_norm2.bias"),
            ({"visual.ln_mid.weight": torch.zeros(3)}, "holds visual.ln_mid.weight"),
            (
                {"visual.transformer.resblocks.0.ls_1.weight": torch.zeros(3)},
                "layers.0.ls_1.weight, which the CLIPModel does not",
            ),
            ({"visual.conv1.weight": torch.zeros(32, 3, 4, 4)}, "cannot be loaded into a CLIPModel"),
        ],
    )
    def test_another_architecture(self, weights, processor, tmp_path, change, complaint):
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        torch.save({"state_dict": changed}, tmp_path / "other.pt")
        message = refusal(RewardError, "hps_v2", **self.settings(tmp_path / "other.pt", processor))
        assert complaint in message

    def test_a_missing_hub(self, monkeypatch, weights, processor, tmp_path):
        cut_off_hub(monkeypatch)
        message = refusal(RewardError, "hps_v2", processor=str(processor))
        assert "hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir DIR` (2.0 GB)" in message
        assert "--set reward_settings.hps_v2.checkpoint=DIR/HPS_v2.1_compressed.pt" in message
        save_file(weights, tmp_path / "hps.safetensors")
        message = refusal(RewardError, "hps_v2", checkpoint=str(tmp_path / "hps.safetensors"))
        assert "--set reward_settings.hps_v2.processor=DIR" in message

    def test_both_releases_are_there_at_once(self, monkeypatch, checkpoint, processor, weights, tmp_path):
        """The same network: what differs is the file, and where the numbers are kept."""
        settings, batch = self.settings(checkpoint, processor), images(5)
        assert torch.equal(score("hps_v2", batch, PROMPTS, **settings), score("hps_v2_0", batch, PROMPTS, **settings))
        assert RewardSpec("hps_v2", settings).directory != RewardSpec("hps_v2_0", settings).directory
        cut_off_hub(monkeypatch)
        message = refusal(RewardError, "hps_v2_0", processor=str(processor))
        assert "hf download xswu/HPSv2 HPS_v2_compressed.pt --local-dir DIR` (2.0 GB)" in message
        assert "--set reward_settings.hps_v2_0.checkpoint=DIR/HPS_v2_compressed.pt" in message
        torch.save({"state_dict": {"logit_scale": weights["logit_scale"]}}, tmp_path / "part.pt")
        message = refusal(RewardError, "hps_v2_0", **self.settings(tmp_path / "part.pt", processor))
        assert message.startswith("reward 'hps_v2_0': the weights in")

    def test_obstacles(self, monkeypatch, checkpoint, processor):
        cut_off_hub(monkeypatch)
        assert obstacle("hps_v2", **self.settings(checkpoint, processor)) is None
        assert "HPS_v2.1_compressed.pt is not here" in obstacle("hps_v2")
        assert "processor 'laion/" in obstacle("hps_v2", checkpoint=str(checkpoint))

    def test_a_processor_that_is_no_clip(self, checkpoint, processor, tmp_path):
        shutil.copytree(processor, tmp_path / "processor")
        (tmp_path / "processor" / "config.json").write_text("{")
        message = refusal(RewardError, "hps_v2", **self.settings(checkpoint, tmp_path / "processor"))
        assert "holds no config.json of a CLIP model" in message

    def test_other_weights_are_another_revision(self, weights, processor, tmp_path):
        save_file(weights, tmp_path / "one.safetensors")
        save_file({**weights, "logit_scale": torch.tensor(1.0)}, tmp_path / "two.safetensors")
        one, two = (self.settings(tmp_path / f"{name}.safetensors", processor) for name in ("one", "two"))
        assert revision("hps_v2", **one) != revision("hps_v2", **two)
