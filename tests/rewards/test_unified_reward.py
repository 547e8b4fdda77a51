"""UnifiedReward 2.0: the published question, ratings read from answers, behind an endpoint and in this process."""

import hashlib
import json
import logging

import pytest
import torch
from judge_servers import Reply, serve
from small_clip import load, obstacle, refusal, score
from small_qwen import pictures, save_small_qwen

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.unified_reward import MODEL, QUESTION, read_rating

PUBLISHED = (
    "Alignment Score (1-5): 2.694700002670288\n"
    "Coherence Score (1-5): 2.371500015258789\n"
    "Style Score (1-5): 2.802500009536743"
)
"""The example answer of the published code."""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RLCM_JUDGE_ENDPOINT", "RLCM_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def ask(*answers, **settings):
    """Score an image for each answer of a server; return the scores and the requests."""
    bodies = {f"prompt {row}": answer for row, answer in enumerate(answers)}

    def reply(request):
        question = json.loads(request.body)["messages"][0]["content"][1]["text"]
        (answer,) = [answer for prompt, answer in bodies.items() if question.endswith(f"Text Caption: [{prompt}]")]
        return Reply(json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode())

    with serve(reply) as (address, requests):
        return score("unified_reward", pictures(len(answers)), list(bodies), endpoint=address, **settings), requests


class TestAnswers:
    def test_the_question_is_the_published_one(self):
        """The digest is of `problem` in the published code, for the prompt "a {cat}"."""
        written = QUESTION.replace("{prompt}", "a {cat}")
        digest = "5922a5a98dfe6015b7ba0f55a4256ef938be48137fa33d0870f7b6478a825f5e"
        assert hashlib.sha256(written.encode()).hexdigest() == digest

    def test_the_mean_of_three_ratings(self):
        scores, requests = ask(PUBLISHED, PUBLISHED.replace("2.802500009536743", "5"))
        expected = [(2.6947 + 2.3715 + last) / 3 for last in (2.8025, 5)]
        torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-4)
        body = json.loads(requests[0].body)
        assert (body["model"], body["max_tokens"], body["temperature"]) == (MODEL, 512, 0)

    def test_chosen_axes_only(self):
        scores, _ = ask(PUBLISHED, axes=["style"], model="UnifiedReward")
        torch.testing.assert_close(scores, torch.tensor([2.8025]))

    @pytest.mark.parametrize(
        ("answer", "rating"),
        [
            ("**Style Score (1-5):** 4", 4.0),
            ("style score: 3.5.", 3.5),
            ("Style Score (1-5): X … Style Score (1-5): 2\nStyle Score (1-5): 3", 3.0),
            ("Style Score (1-5): 9", 5.0),
            ("Style Score (1-5): 0.2", 1.0),
            ("Style Score (1-5): nan", None),
            ("Restyle Score (1-5): 4", None),
            ("", None),
        ],
    )
    def test_ratings(self, answer, rating):
        assert read_rating(answer, "style") == rating

    def test_an_answer_without_a_rating_counts_as_the_least(self, caplog):
        with caplog.at_level(logging.WARNING):
            scores, _ = ask(PUBLISHED, "I cannot\nsay.", axes=["style", "alignment"])
        torch.testing.assert_close(scores, torch.tensor([(2.8025 + 2.6947) / 2, 1.0]))
        assert "1 of 2 answers lack a rating, which counts as 1, such as 'I cannot say.'" in caplog.text

    def test_a_judge_that_rates_nothing(self):
        with pytest.raises(RewardError) as caught:
            ask("A cat.", "A\ndog.")
        assert "none of 2 answers has the ratings, the first being 'A cat.'; let the judge serve" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestLocal:
    def test_a_model_in_this_process(self, tmp_path, caplog):
        """A random one rates nothing; what it is asked is what a server would be."""
        size = {"shortest_edge": 1024, "longest_edge": 10**6}
        folder = save_small_qwen(tmp_path / "qwen", size=size)
        settings = {"judge": "local", "model": str(folder), "dtype": "float32", "max_tokens": 3}
        assert obstacle("unified_reward", **settings) is None
        assert score("unified_reward", pictures(1), ["a cat"], **settings).tolist() == [1.0]
        assert "1 of 1 answers lack a rating" in caplog.text

    def test_no_images_have_no_scores(self, tmp_path):
        folder = save_small_qwen(tmp_path / "qwen")
        reward = load("unified_reward", judge="local", model=str(folder), dtype="float32")
        assert reward.score(pictures(0), [], []).shape == (0,)


class TestSettings:
    @pytest.mark.parametrize("axes", [[], ["style", "style"], ["beauty"], "style", [3], [["style"]]])
    def test_axes_that_are_none(self, axes):
        message = refusal(ConfigError, "unified_reward", axes=axes, endpoint="http://127.0.0.1:1")
        assert "must be a list of some of alignment, coherence, style" in message

    def test_obstacles(self):
        assert "RLCM_JUDGE_ENDPOINT" in obstacle("unified_reward")
        assert f"hf download {MODEL}" in obstacle("unified_reward", judge="local")
