"""examples/foreign_reward: its server answers rlcm's client, and its models are loaded as their authors do."""

import importlib
import json
import sys
import threading
import types
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards import RewardSpec, load_reward

FOLDER = Path(__file__).parents[2] / "examples" / "foreign_reward"


@pytest.fixture
def example(monkeypatch):
    """Import a file of the example as its script does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("server", "deqa", "edit_reward"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in ("server", "deqa", "edit_reward"):
        sys.modules.pop(name, None)


@contextmanager
def serving(server, score, name="deqa", revision="r1"):
    running = server.make_server(server.Served(name, score, revision, "a test", "any"), "127.0.0.1", 0)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/{name}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def means(images, prompts):
    if "odd" in prompts:
        raise ValueError("nothing is known of\nthis prompt")
    return images.mean((1, 2, 3)) + [len(prompt) for prompt in prompts]


def pictures(count: int) -> torch.Tensor:
    return torch.arange(count * 48, dtype=torch.uint8).reshape(count, 3, 4, 4)


class TestServer:
    def test_a_run_asks_it(self, example):
        batch = pictures(3)
        with serving(example("server"), means) as address:
            reward = load_reward(RewardSpec(address))
            assert reward.revision == "r1"
            rewards = reward.score(batch, ["a", "bb", "ccc"], [{}] * 3)
            with pytest.raises(RewardError, match="nothing is known of this prompt"):
                reward.score(batch[:1], ["odd"], [{}])
            with pytest.raises(RewardError, match="this server has deqa only"):
                load_reward(RewardSpec(address.replace("deqa", "other")))
        torch.testing.assert_close(rewards, batch.float().mean((1, 2, 3)) + torch.tensor([1.0, 2.0, 3.0]))

    def test_its_token(self, example, monkeypatch):
        server = example("server")
        monkeypatch.setenv("RLCM_REWARD_TOKEN", "secret")
        with serving(server, means) as address:
            assert load_reward(RewardSpec(address)).score(pictures(1), ["a"], [{}]).shape == (1,)
            monkeypatch.setenv("RLCM_REWARD_TOKEN", "other")
            with pytest.raises(RewardError, match="401"):
                load_reward(RewardSpec(address))
        monkeypatch.delenv("RLCM_REWARD_TOKEN")
        with pytest.raises(SystemExit, match=r"0\.0\.0\.0 is open to other machines: put a token"):
            server.make_server(server.Served("x", means, "r", "", ""), "0.0.0.0", 0)  # noqa: S104 - is refused

    @pytest.mark.parametrize(
        ("body", "kind", "status"),
        [
            (b"", "application/x-safetensors", 400),
            (b"\xff" * 40, "application/x-safetensors", 400),
            (b"\x02" + bytes(7) + b"{}", "application/x-safetensors", 400),
            (b"{}", "application/json", 415),
        ],
    )
    def test_what_is_no_request(self, example, body, kind, status):
        with serving(example("server"), means) as address:
            request = urllib.request.Request(address, body, {"Content-Type": kind})  # noqa: S310 - the loopback
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request)  # noqa: S310 - the loopback
            assert caught.value.code == status
            assert json.loads(caught.value.read())["detail"]

    def test_too_large_a_request(self, example, monkeypatch):
        server = example("server")
        monkeypatch.setattr(server, "MOST_BYTES", 10)
        with serving(server, means) as address:
            request = urllib.request.Request(address, bytes(11), {"Content-Type": server.MEDIA_TYPE})  # noqa: S310
            with pytest.raises(urllib.error.HTTPError, match="413"):
                urllib.request.urlopen(request)  # noqa: S310


class TestModels:
    def test_deqa_runs_the_code_of_one_commit(self, example, monkeypatch):
        class Model:
            def score(self, pictures):
                return torch.tensor([numpy.asarray(picture).mean() for picture in pictures], dtype=torch.float16)

        asked = {}

        def from_pretrained(name, **arguments):
            asked.update(arguments, name=name)
            return Model()

        stand_in = types.SimpleNamespace(AutoModelForCausalLM=types.SimpleNamespace(from_pretrained=from_pretrained))
        monkeypatch.setitem(sys.modules, "transformers", stand_in)
        score = example("deqa").load("abc123")
        assert (asked["name"], asked["revision"]) == ("zhiyuanyou/DeQA-Score-Mix3", "abc123")
        assert asked["trust_remote_code"] is True
        batch = pictures(2)
        with serving(example("server"), score) as address:
            rewards = load_reward(RewardSpec(address)).score(batch, ["a", "b"], [{}] * 2)
        torch.testing.assert_close(rewards, batch.float().mean((1, 2, 3)), rtol=1e-3, atol=0)

    def test_edit_reward_sees_the_source_of_each_instruction(self, example, monkeypatch, tmp_path):
        from PIL import Image

        class Judge:
            def __init__(self, **arguments):
                self.arguments = arguments

            def reward(self, prompts, image_src, image_paths):
                differences = [
                    numpy.asarray(Image.open(edited)).astype(float).mean() - numpy.asarray(Image.open(source)).mean()
                    for source, edited in zip(image_src, image_paths, strict=True)
                ]
                return torch.tensor([[difference, 0.0] for difference in differences])

        module = types.SimpleNamespace(EditRewardVLInferencer=Judge)
        monkeypatch.setitem(sys.modules, "EditReward", types.ModuleType("EditReward"))
        monkeypatch.setitem(sys.modules, "EditReward.inference_vl_edit", module)
        Image.new("RGB", (4, 4), (10, 10, 10)).save(tmp_path / "room.png")
        (tmp_path / "sources.jsonl").write_text(json.dumps({"prompt": "brighter", "source": "room.png"}) + "\n\n")
        edit = example("edit_reward")
        score = edit.load("c.yaml", "folder", edit.read_sources(tmp_path / "sources.jsonl"))
        batch = pictures(2)
        with serving(example("server"), score) as address:
            reward = load_reward(RewardSpec(address))
            rewards = reward.score(batch, ["brighter"] * 2, [{}] * 2)
            with pytest.raises(RewardError, match="there is no source image for the instruction 'darker'"):
                reward.score(batch, ["brighter", "darker"], [{}] * 2)
        torch.testing.assert_close(rewards, batch.float().mean((1, 2, 3)) - 10)
