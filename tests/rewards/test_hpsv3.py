"""HPSv3 on a small random model: the published code's numbers, both layouts of weights, files that are others."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_clip import cut_off_hub, load, obstacle, refusal, score
from small_qwen import pictures, save_small_hpsv3

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.hpsv3 import INSTRUCTION

TABLE = json.loads((Path(__file__).parents[1] / "data" / "parity" / "hpsv3.json").read_text())
PROMPTS = TABLE["cases"][0]["prompts"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    checkpoint, processor = save_small_hpsv3(tmp_path_factory.mktemp("hpsv3"))
    return {"checkpoint": str(checkpoint), "processor": str(processor), "dtype": "float32"}


@pytest.fixture(scope="module")
def weights(settings):
    return load_file(settings["checkpoint"])


class TestScores:
    @pytest.mark.parametrize("case", [TABLE["cases"][0], pytest.param(TABLE["cases"][1], marks=pytest.mark.slow)])
    def test_they_are_those_of_the_published_code(self, settings, case):
        """Of positions that only count up, too: with those of transformers' own forward pass they differ."""
        found = score("hpsv3", pictures(3, case["height"], case["width"]), case["prompts"], **settings)
        torch.testing.assert_close(found, torch.tensor(case["scores"]), rtol=0, atol=1e-4)

    def test_the_names_of_newer_weights_are_read_and_a_batch_changes_nothing(self, settings, weights, tmp_path):
        newer = {}
        for name, tensor in weights.items():
            name = f"model.{name}" if name.startswith("visual.") else name
            newer[name.replace("model.", "model.language_model.", 1) if "visual" not in name else name] = tensor
        save_file(newer, tmp_path / "newer.safetensors")
        batch = pictures(3, 448, 448)[1:2]
        found = score("hpsv3", batch, PROMPTS[1:2], **{**settings, "checkpoint": str(tmp_path / "newer.safetensors")})
        torch.testing.assert_close(found, torch.tensor(TABLE["cases"][0]["scores"][1:2]), rtol=0, atol=1e-4)

    def test_there_is_a_gradient(self, settings):
        reward, batch = load("hpsv3", **settings), pictures(1, 64, 64)
        floats = batch.float().requires_grad_()
        scores = reward.score_floats(floats, PROMPTS[:1], [{}])
        torch.testing.assert_close(scores.detach(), reward.score(batch, PROMPTS[:1], [{}]), rtol=0, atol=1e-4)
        (slope,) = torch.autograd.grad(scores.sum(), floats)
        assert slope.isfinite().all()
        assert (slope != 0).float().mean() > 0.9

    def test_the_instruction_is_the_published_one(self):
        digest = "e61d58f3c7d3be656ccd024f5c0cd8c001cf9a2122305d52b59e60d94147e0f2"
        assert hashlib.sha256(INSTRUCTION.encode()).hexdigest() == digest

    @pytest.mark.slow
    def test_weights_in_fewer_bits(self, settings):
        batch = pictures(3, 448, 448)
        halves = score("hpsv3", batch, PROMPTS, **{**settings, "dtype": "bfloat16"})
        torch.testing.assert_close(halves, torch.tensor(TABLE["cases"][0]["scores"]), rtol=0, atol=0.1)


class TestRefusals:
    def message(self, settings, weights, tmp_path, **changes) -> str:
        changed = {name: tensor for name, tensor in {**weights, **changes}.items() if tensor is not None}
        save_file(changed, tmp_path / "changed.safetensors")
        return refusal(RewardError, "hpsv3", **{**settings, "checkpoint": str(tmp_path / "changed.safetensors")})

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"model.embed_tokens.weight": None}, "it has no embeddings of tokens; name HPSv3.safetensors"),
            ({"rm_head.5.bias": None}, "its head holds rm_head.0.bias, rm_head.0.weight, rm_head.3.bias"),
            ({"rm_head.5.weight": torch.ones(3, 16)}, "which do not lead from 32 numbers to two"),
            ({"visual.merger.ln_q.weight": None}, "lack visual.merger.ln_q.weight"),
            ({"visual.other": torch.ones(1)}, "holds visual.other, which the Qwen2VLModel does not have"),
            ({"model.norm.weight": torch.ones(3)}, "cannot be loaded into a Qwen2VLModel"),
            ({"model.embed_tokens.weight": torch.ones(9, 32)}, "knows 9: they do not belong together"),
        ],
    )
    def test_another_checkpoint(self, settings, weights, tmp_path, changes, complaint):
        assert complaint in self.message(settings, weights, tmp_path, **changes)

    def test_a_processor_of_another_model(self, settings, tmp_path):
        processor = shutil.copytree(settings["processor"], tmp_path / "processor")
        config = json.loads((processor / "config.json").read_text())
        (processor / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vl"}))
        message = refusal(RewardError, "hpsv3", **{**settings, "processor": str(processor)})
        assert "holds a model of type qwen3_vl, and this reward reads qwen2_vl" in message
        (processor / "config.json").write_text(json.dumps({**config, "vision_config": 3}))
        message = refusal(RewardError, "hpsv3", **{**settings, "processor": str(processor)})
        assert "is not that of a Qwen2-VL" in message

    def test_a_prompt_with_the_reward_token(self, settings):
        with pytest.raises(RewardError, match=r"holds <\|Reward\|>, where the model is read; change the prompt"):
            score("hpsv3", pictures(1), ["a cat <|Reward|>"], **settings)

    def test_a_dtype_that_is_none(self, settings):
        assert "dtype 'int8' must be one of auto" in refusal(ConfigError, "hpsv3", **{**settings, "dtype": "int8"})

    def test_a_missing_hub(self, monkeypatch, settings):
        cut_off_hub(monkeypatch)
        assert obstacle("hpsv3", **settings) is None
        message = obstacle("hpsv3")
        assert "hf download MizzenAI/HPSv3 HPSv3.safetensors --local-dir DIR` (16.6 GB)" in message
        message = refusal(RewardError, "hpsv3")
        assert "hf download Qwen/Qwen2-VL-7B-Instruct --include 'config.json'" in message
        assert "--set reward_settings.hpsv3.processor=DIR" in message
