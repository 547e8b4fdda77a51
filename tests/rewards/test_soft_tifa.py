"""Soft-TIFA on a small random model: the published code's numbers, and files of questions that are none."""

import json
from pathlib import Path

import pytest
import torch
from small_clip import assert_any_split, cut_off_hub, load, obstacle, refusal, revision, score
from small_qwen import pictures, save_small_qwen

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.soft_tifa import Question, read_questions

TABLE = json.loads((Path(__file__).parents[1] / "data" / "parity" / "soft_tifa.json").read_text())
PROMPTS = [f"prompt {number}" for number in range(3)]
SMALL = {"shortest_edge": 1024, "longest_edge": 10**6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_qwen(tmp_path_factory.mktemp("models") / "qwen"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same model, to which small images stay small."""
    return str(save_small_qwen(tmp_path_factory.mktemp("models") / "qwen", size=SMALL))


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path, *({"prompt": PROMPTS[case["image"]], **case} for case in TABLE["cases"][:3]))


def write(folder, *lines) -> str:
    file = folder / "questions.jsonl"
    file.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(file)


class TestScores:
    @pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
    @pytest.mark.parametrize("height", [96, pytest.param(256, marks=pytest.mark.slow)])
    def test_they_are_those_of_the_published_code(self, model, questions, height, mean):
        """Also of small images, which the model's own preprocessing enlarges."""
        cases = [case for case in TABLE["cases"] if case["height"] == height]
        batch = pictures(3, height, cases[0]["width"])
        found = score("soft_tifa", batch, PROMPTS, model=model, questions=questions, mean=mean, dtype="float32")
        torch.testing.assert_close(found, torch.tensor([case[mean] for case in cases]), rtol=1e-3, atol=0)

    def test_any_batch_split_gives_the_same(self, small, questions):
        reward = load("soft_tifa", model=small, questions=questions, dtype="float32")
        assert_any_split(reward, pictures(6), [*PROMPTS] * 2, tolerance=1e-6)

    def test_there_is_a_gradient(self, small, questions):
        reward = load("soft_tifa", model=small, questions=questions, dtype="float32")
        batch = pictures(3).float().requires_grad_()
        scores = reward.score_floats(batch, PROMPTS, [{}] * 3)
        torch.testing.assert_close(scores.detach(), reward.score(batch.detach().byte(), PROMPTS, [{}] * 3))
        (slopes,) = torch.autograd.grad(scores[1], batch)
        assert slopes.abs().amax((1, 2, 3)).bool().tolist() == [False, True, False]

    def test_numbers_are_right_in_words_and_digits(self):
        assert Question("How many cats?", "two").writings == ["two", "Two", "2", " two", " Two", " 2"]
        assert Question("How many cats?", "twelve").writings[2::3] == ["other", " other"]
        assert Question("Is it a cat?", "Yes").writings == ("Yes", "yes", " yes", " Yes")


class TestQuestions:
    def test_they_are_read_by_prompt(self, tmp_path):
        line = {"prompt": "a cat", "atom_count": 1, "vqa_list": [["Is it a cat?", "Yes"]], "skills": ["object"]}
        file = Path(write(tmp_path, line, "\n", line))
        assert read_questions(file) == {"a cat": (Question("Is it a cat?", "Yes"),)}

    def test_a_prompt_without_any(self, small, questions):
        with pytest.raises(RewardError) as caught:
            score("soft_tifa", pictures(1), ["a horse"], model=small, questions=questions, dtype="float32")
        assert f"{questions} has no questions for the prompt 'a horse'; use its prompts" in str(caught.value)

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "[]",
            '{"prompt": "a cat"}',
            '{"prompt": "a cat", "vqa_list": []}',
            '{"prompt": "a cat", "vqa_list": [["a", "b", "c"]]}',
            '{"prompt": "a cat", "vqa_list": [["a", 2]]}',
            '{"prompt": 3, "vqa_list": [["a", "b"]]}',
            "[" * 100_000,
        ],
    )
    def test_a_line_that_is_something_else(self, tmp_path, line):
        file = write(tmp_path, {"prompt": "a cat", "vqa_list": [["Is it?", "Yes"]]}, line)
        with pytest.raises(RewardError) as caught:
            read_questions(Path(file))
        assert f"{file}, line 2 is not " in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_two_lists_for_one_prompt(self, tmp_path):
        lines = [{"prompt": "a cat", "vqa_list": [[question, "Yes"]]} for question in ("Is it?", "Is it not?")]
        with pytest.raises(RewardError, match="line 2 has other questions for 'a cat' than an earlier line"):
            read_questions(Path(write(tmp_path, *lines)))

    def test_files_that_are_none(self, small, tmp_path):
        settings = {"model": small, "dtype": "float32"}
        assert "asks the questions of a file, and none is set" in refusal(ConfigError, "soft_tifa", **settings)
        missing = refusal(RewardError, "soft_tifa", **settings, questions=str(tmp_path / "none.jsonl"))
        assert "cannot be read (No such file or directory); --set reward_settings.soft_tifa.questions=FILE" in missing
        assert "holds no questions" in refusal(RewardError, "soft_tifa", **settings, questions=write(tmp_path, "\n"))
        (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
        binary = refusal(RewardError, "soft_tifa", **settings, questions=str(tmp_path / "binary.jsonl"))
        assert "cannot be read (it is not text)" in binary

    def test_obstacles(self, monkeypatch, small, questions, tmp_path):
        cut_off_hub(monkeypatch)
        assert "hf download Qwen/Qwen3-VL-8B-Instruct" in obstacle("soft_tifa")
        assert "no file of questions is set" in obstacle("soft_tifa", model=small)
        with pytest.raises(ConfigError, match="asks the questions of a file"):
            obstacle("soft_tifa", model=small, questions=3)
        assert "there is no file" in obstacle("soft_tifa", model=small, questions=str(tmp_path / "none.jsonl"))
        assert obstacle("soft_tifa", model=small, questions=questions) is None

    def test_other_questions_are_another_revision(self, small, questions, tmp_path):
        before = revision("soft_tifa", model=small, questions=questions)
        assert revision("soft_tifa", model=small, questions=questions) == before
        write(tmp_path, {"prompt": "a cat", "vqa_list": [["Is it?", "Yes"]]})
        assert revision("soft_tifa", model=small, questions=questions) != before

    def test_a_mean_that_is_none(self, small, questions):
        message = refusal(ConfigError, "soft_tifa", model=small, questions=questions, mean="median")
        assert "mean 'median' must be one of geometric, arithmetic" in message
