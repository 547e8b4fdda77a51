"""VQAScore on small random models: the published code's numbers, gradients, settings that are wrong."""

import json
from pathlib import Path

import pytest
import torch
from small_clip import assert_any_split, cut_off_hub, load, obstacle, refusal, revision, score
from small_qwen import pictures, save_small_qwen

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.vqa_score import MODEL

TABLE = json.loads((Path(__file__).parents[1] / "data" / "parity" / "vqa_score.json").read_text())
PROMPTS = ["a cat", "two dogs, on blue", "a dog's image", "a cat", "z"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        (kind, penalty): str(save_small_qwen(folder / kind, kind, penalty=penalty))
        for kind, penalty in sorted({(case["kind"], case["penalty"]) for case in TABLE["cases"]})
    }


@pytest.fixture
def model(models):
    return {"model": models["qwen3_vl", 1.0], "dtype": "float32"}


class TestScores:
    @pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: f"{case['kind']}-{case['height']}")
    def test_they_are_those_of_the_published_code(self, models, case):
        """Also of images that have to be resized, and with a repetition penalty as that of Qwen2.5-VL."""
        batch = pictures(3, case["height"], case["width"])
        found = score(
            "vqa_score", batch, case["prompts"], model=models[case["kind"], case["penalty"]], dtype="float32"
        )
        torch.testing.assert_close(found, torch.tensor(case["scores"]), rtol=1e-4, atol=0)

    def test_any_batch_split_gives_the_same(self, model):
        assert_any_split(load("vqa_score", **model), pictures(10), [*PROMPTS] * 2, tolerance=1e-5)

    def test_probabilities_of_several_answers_are_added(self, model):
        batch, answers = pictures(2), ["Yes", "yes", " yes", " Yes"]
        each = [score("vqa_score", batch, PROMPTS[:2], **model, answers=[answer]) for answer in answers]
        found = score("vqa_score", batch, PROMPTS[:2], **model, answers=[*answers, "Yes"])
        torch.testing.assert_close(found, torch.stack(each).sum(0))

    def test_the_question_has_the_prompt_in_it(self, model):
        batch = pictures(1)
        asked = score("vqa_score", batch, ["a cat"], **model, question="Evaluate {prompt} {0}")
        assert torch.equal(asked, score("vqa_score", batch, ["cat"], **model, question="Evaluate a {prompt} {0}"))
        assert not torch.equal(asked, score("vqa_score", batch, ["a dog"], **model, question="Evaluate {prompt} {0}"))

    def test_weights_in_fewer_bits(self, model):
        batch = pictures(3)
        halves = score("vqa_score", batch, PROMPTS[:3], model=model["model"])
        torch.testing.assert_close(halves, score("vqa_score", batch, PROMPTS[:3], **model), rtol=0.2, atol=0)

    def test_the_gradient_is_that_of_the_score(self, model):
        reward, batch = load("vqa_score", **model), pictures(2).float().requires_grad_()
        scores = reward.score_floats(batch, PROMPTS[:2], [{}] * 2)
        torch.testing.assert_close(scores.detach(), reward.score(batch.detach().byte(), PROMPTS[:2], [{}] * 2))
        (slope,) = torch.autograd.grad(scores.sum(), batch)
        step = 2.0 / slope.abs().amax()
        moved = [reward.function(batch.detach() + sign * step * slope, PROMPTS[:2], []) for sign in (-1, 1)]
        expected = 2 * step * (slope**2).sum((1, 2, 3))
        torch.testing.assert_close(moved[1] - moved[0], expected, rtol=0.1, atol=0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"question": "Is it good?"}, "question 'Is it good?' must be a text with {prompt} in it"),
            ({"question": 3}, "question 3 must be a text"),
            ({"answers": []}, "answers [] must be a list of texts, such as ['Yes']"),
            ({"answers": "Yes"}, "answers 'Yes' must be a list"),
            ({"dtype": "int8"}, "dtype 'int8' must be one of auto, float32, float16, bfloat16"),
        ],
    )
    def test_settings(self, model, settings, complaint):
        assert complaint in refusal(ConfigError, "vqa_score", **{**model, **settings})

    def test_a_prompt_with_the_image_token(self, model):
        with pytest.raises(RewardError) as caught:
            score("vqa_score", pictures(1), ["a <|image_pad|> cat"], **model)
        assert "holds <|image_pad|>, which stands for an image to the model; change the prompt" in str(caught.value)

    def test_a_missing_hub(self, monkeypatch, model):
        cut_off_hub(monkeypatch)
        assert obstacle("vqa_score", **model) is None
        for message in (obstacle("vqa_score"), refusal(RewardError, "vqa_score")):
            assert f"hf download {MODEL.source} --include '*.json'" in message
            assert "(17.5 GB)" in message
            assert "--set reward_settings.vqa_score.model=DIR" in message

    def test_another_template_is_another_revision(self, model, tmp_path):
        before = revision("vqa_score", **model)
        folder = save_small_qwen(tmp_path / "model")
        assert revision("vqa_score", model=str(folder)) == before
        (folder / "chat_template.json").write_text("{}")
        assert revision("vqa_score", model=str(folder)) != before
