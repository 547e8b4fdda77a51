import io
import json
import pickle
import subprocess
import sys

import pytest
import small_language_models
import small_vlms
import torch
from judge_servers import Reply, serve
from PIL import Image

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import REWARDS, Reward, RewardSpec, load_reward
from rlcm_cli.rewards.judges import JUDGES, JudgeSettings
from rlcm_cli.rewards.networks.bertscore import RecallScorer
from rlcm_cli.rewards.prompt_image_alignment import QUESTION, reference
from rlcm_cli.rewards.vqa import states


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RLCM_JUDGE_ENDPOINT", "RLCM_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    pytest.importorskip("bert_score")
    folder = tmp_path_factory.mktemp("models") / "bert"
    small_language_models.make_bert(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llava"
    small_vlms.make_llava(folder)
    return str(folder)


def images(count: int) -> torch.Tensor:
    """Images whose first pixel is their number."""
    batch = torch.zeros((count, 3, 16, 16), dtype=torch.uint8)
    batch += torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return batch


def load(name, **settings) -> Reward:
    return load_reward(RewardSpec(name, settings))


def score(name, batch, prompts, **settings):
    return load(name, **settings).score(batch, prompts, [{}] * len(prompts))


def refusal(call, kind=RewardError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def talker(answers):
    """An OpenAI-compatible judge that gives image number i the answer i; keeps the questions."""
    questions = {}

    def reply(request):
        import base64

        picture, text = json.loads(request.body)["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].split(",")[1])
        number = Image.open(io.BytesIO(data)).getpixel((0, 0))[0]
        questions[number] = text["text"]
        return Reply(json.dumps({"choices": [{"message": {"content": answers[number]}}]}).encode())

    return reply, questions


class TestPromptImageAlignment:
    def test_it_is_the_recall_of_the_answer_against_the_sentence(self, bert):
        answers = ["a cat on blue", "", "a dog riding a bike"]
        prompts = ["a cat", "a dog", "a dog on blue"]
        reply, questions = talker(answers)
        with serve(reply) as (address, _):
            settings = {"endpoint": address, "model": "m", "scorer_model": bert, "scorer_layer": 3}
            rewards = score("prompt_image_alignment", images(3), prompts, **settings)
        scorer = RecallScorer(bert, 3, "r")
        expected = scorer(answers, [reference(prompt) for prompt in prompts], torch.device("cpu"))
        torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-6)
        assert rewards[1] == 0
        assert set(questions.values()) == {"Answer concisely: what is going on in this image?"}

    def test_a_local_judge(self, bert, vlm):
        batch = images(3) * 40
        settings = {"judge": "local", "model": vlm, "max_tokens": 6, "scorer_model": bert, "scorer_layer": 2}
        rewards = score("prompt_image_alignment", batch, ["a cat"] * 3, **settings)
        answer = JUDGES["local"].make(JudgeSettings(judge="local", model=vlm, max_tokens=6), "r")
        answers = answer(batch, [QUESTION] * 3)
        expected = RecallScorer(bert, 2, "r")(answers, [reference("a cat")] * 3, torch.device("cpu"))
        torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-6)

    def test_a_llava_server_scores_itself(self):
        def reply(request):
            data = pickle.loads(request.body)  # noqa: S301
            assert data["queries"] == [["Answer concisely: what is going on in this image?"]] * 2
            recall = {"The image contains a cat": 0.75, "The image contains a dog": 0.5}
            recalls = [[recall[text] for text in row] for row in data["answers"]]
            return Reply(pickle.dumps({"outputs": [["?"], ["?"]], "recall": recalls}))

        with serve(reply) as (address, _):
            settings = {"judge": "llava-server", "endpoint": address}
            rewards = score("prompt_image_alignment", images(2), ["a dog", "a cat"], **settings)
        assert rewards.tolist() == [0.5, 0.75]

    def test_another_scorer_than_the_servers_is_refused(self, bert):
        settings = {"judge": "llava-server", "endpoint": "http://127.0.0.1:1"}
        for other in ({"scorer_model": bert}, {"scorer_layer": 3}):
            message = refusal(lambda other=other: load("prompt_image_alignment", **settings, **other), ConfigError)
            assert "leave scorer_model and scorer_layer unset" in message

    def test_what_is_in_the_way(self, bert):
        def obstacle(**settings):
            return RewardSpec("prompt_image_alignment", settings).find_obstacle()

        assert "RLCM_JUDGE_ENDPOINT" in obstacle()
        ready = {"endpoint": "http://127.0.0.1:1", "model": "m"}
        assert "scorer_model" in obstacle(**ready, scorer_model="owner/none")
        assert obstacle(**ready, scorer_model=bert) is None
        assert obstacle(judge="llava-server", endpoint="http://127.0.0.1:1") is None

    def test_what_identifies_it(self, bert):
        def revise(**settings):
            return RewardSpec("prompt_image_alignment", settings).revise({})

        named, digest = revise(model="m", scorer_model=bert).split()
        assert named == "openai:m"
        assert len(digest) == 64
        assert revise(judge="llava-server") == "llava-server"


class TestVqa:
    def test_counting(self):
        prompts = ["three tigers", "3 tigers", "Two cats on a mat", "ten ants", "one dog"]
        answers = ["There are three tigers.", "3", "I see 3 cats", "10", "two dogs, one asleep"]
        reply, questions = talker(answers)
        with serve(reply) as (address, _):
            rewards = score("vqa", images(5), prompts, endpoint=address, model="m")
        assert rewards.tolist() == [1, 1, 0, 1, 0]
        assert questions == {
            row: f"How many {noun} are there in this image? Answer with a number."
            for row, noun in enumerate(["tigers", "tigers", "cats on a mat", "ants", "dog"])
        }

    def test_other_questions(self):
        templates = {"question": "Does this image show {prompt}? Answer yes or no.", "answer": "yes"}
        reply, questions = talker(["Yes, it does.", "No.", ""])
        with serve(reply) as (address, _):
            rewards = score("vqa", images(3), ["a cat", "a {dog}", "three"], endpoint=address, model="m", **templates)
        assert rewards.tolist() == [1, 0, 0]
        assert questions[1] == "Does this image show a {dog}? Answer yes or no."

    def test_an_answer_from_the_prompt(self):
        templates = {"question": "What animal is this?", "answer": "{noun}"}
        reply, _ = talker(["These are Tigers!", "a tiger"])
        with serve(reply) as (address, _):
            rewards = score("vqa", images(2), ["three tigers"] * 2, endpoint=address, model="m", **templates)
        assert rewards.tolist() == [1, 0]

    def test_a_llava_server(self):
        with serve(lambda request: Reply(pickle.dumps({"outputs": [["3"], ["two"]]}))) as (address, _):
            rewards = score("vqa", images(2), ["three cats"] * 2, judge="llava-server", endpoint=address)
        assert rewards.tolist() == [1, 0]

    def test_a_local_judge(self, vlm):
        rewards = score("vqa", images(2), ["three cats"] * 2, judge="local", model=vlm, max_tokens=4)
        assert set(rewards.tolist()) <= {0.0, 1.0}

    @pytest.mark.parametrize("prompt", ["a tiger", "tigers", "three", "three ", "", "thirdly tigers", "-3 tigers"])
    def test_prompts_that_do_not_fit(self, prompt):
        with serve(lambda request: Reply(b"", 404)) as (address, requests):
            message = refusal(lambda: score("vqa", images(1), [prompt], endpoint=address, model="m"))
        assert f"prompt {prompt!r} is not of the form NUMBER NOUN" in message
        assert "reward_settings.vqa.question" in message
        assert requests == []

    @pytest.mark.parametrize(
        "template",
        ["{promt}", "{prompt.__class__}", "{prompt[0]}", "{prompt!r}", "{number:>9}", "{", "{}", "", " ", 3],
    )
    @pytest.mark.parametrize("setting", ["question", "answer"])
    def test_impossible_templates(self, setting, template):
        settings = {"endpoint": "http://127.0.0.1:1", "model": "m", setting: template}
        assert f"{setting} {template!r} must be a text" in refusal(lambda: load("vqa", **settings), ConfigError)

    def test_braces_can_be_written(self):
        reply, questions = talker(["{x}"])
        templates = {"question": "{{{prompt}}}", "answer": "{{x}}"}
        with serve(reply) as (address, _):
            assert score("vqa", images(1), ["cat"], endpoint=address, model="m", **templates).tolist() == [1]
        assert questions == {0: "{cat}"}

    @pytest.mark.parametrize(
        ("answer", "expected", "stated"),
        [
            ("three", "3", True),
            ("Three.", "3", True),
            ("3", "three", True),
            ("There are 3 tigers", "3", True),
            ("(3)", "3", True),
            ("...3", "3", True),
            ("013", "13", True),
            ("twelve", "12", True),
            ("twenty-one", "21", True),
            ("twenty-one", "1", False),
            ("twenty-one", "20", False),
            ("13", "3", False),
            ("30", "3", False),
            ("3.5", "3", False),
            ("3,000", "3", False),
            ("2.3", "3", False),
            ("3rd", "3", False),
            ("-3", "3", False),
            ("thirteen", "3", False),
            ("someone", "1", False),
            ("two or three", "3", False),
            ("three, one of them asleep", "1", False),
            ("no tigers", "3", False),
            ("9" * 5000, "3", False),
            ("", "3", False),
            ("zero", "0", True),
            ("Yes", "yes", True),
            ("yesterday", "yes", False),
            ("a polar  bear", "polar bear", False),
            ("a polar bear!", "polar bear", True),
            ("a.b", "a.b", True),
            ("aXb", "a.b", False),
        ],
    )
    def test_what_states_an_answer(self, answer, expected, stated):
        assert states(answer, expected) is stated

    def test_what_is_in_the_way_and_what_identifies_it(self, vlm):
        local = RewardSpec("vqa", {"judge": "local", "model": vlm})
        assert "RLCM_JUDGE_ENDPOINT" in RewardSpec("vqa").find_obstacle()
        assert local.find_obstacle() is None
        assert RewardSpec("vqa", {"model": "m"}).revise({}) == "openai:m"
        assert len(local.revise({})) == 64


class TestEntries:
    @pytest.mark.parametrize("name", ["prompt_image_alignment", "vqa"])
    def test_defaults_are_plain_json_and_hold_no_address(self, name):
        defaults = REWARDS[name].defaults
        assert json.loads(json.dumps(defaults)) == defaults
        assert defaults["endpoint"] is None
        assert not any("sk-" in str(value) for value in defaults.values())

    def test_importing_them_imports_nothing_heavy(self):
        program = (
            "import sys, rlcm_cli.rewards.judges;"
            "print([m for m in ('torch', 'transformers', 'PIL', 'numpy', 'httpx2', 'bert_score') if m in sys.modules])"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
        assert run.stdout.strip() == "[]"
