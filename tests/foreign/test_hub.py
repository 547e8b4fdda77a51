"""What the hub gives and refuses, against a hub on this machine."""

from __future__ import annotations

import re
import socket

import pytest
from fake_hub import TOKEN, asking, files_of, reached
from huggingface_hub import constants

from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.foreign import hub as hub_room
from rlcm_cli.foreign.hub import HubError, fetch_file, fetch_snapshot, find_hub_fault, is_cached, list_files
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import locate_lora
from rlcm_cli.prompts import load_prompts
from rlcm_cli.rewards import Weights

AWAY = "http://127.0.0.1:9"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with reached(monkeypatch, tmp_path / "cache") as served:
        served.add("ann/x", files={"model_index.json": b"{}", "unet/config.json": b"{}", "big.bin": b"0"})
        yield served


@pytest.fixture
def away(monkeypatch, tmp_path):
    with asking(monkeypatch, tmp_path / "cache", AWAY):
        yield


def test_a_snapshot_has_what_was_asked_for_and_the_name_of_its_commit(hub):
    folder = fetch_snapshot("ann/x", patterns=["*.json", "*/*.json"])
    assert folder.name == "0" * 40
    assert sorted(file.name for file in folder.rglob("*.*")) == ["config.json", "model_index.json"]
    assert list_files("ann/x") == ("0" * 40, ["model_index.json", "unet/config.json", "big.bin"])
    assert fetch_file("ann/x", "big.bin").read_bytes() == b"0"


def test_the_copy_of_an_earlier_call_is_used_where_the_hub_is_away(hub, monkeypatch):
    folder = fetch_snapshot("ann/x", patterns=["model_index.json"])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch_snapshot("ann/x", patterns=["model_index.json"]) == folder
    assert list_files("ann/x") == ("0" * 40, ["model_index.json"])
    assert is_cached("ann/x", "model_index.json")
    assert not is_cached("ann/x", "big.bin")
    assert not is_cached("ann/y", patterns=["*"])


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "RepoNotFound", "the hub has no repository ann/x, or it is private"),
        (404, "RepoNotFound", "the hub has no repository ann/x, or it is private"),
        (403, "GatedRepo", r"ann/x is gated; accept its terms on its page .*/ann/x.*hf auth login` or set HF_TOKEN"),
        (403, "Other", "does not show ann/x to you .status 403.*hf auth login"),
        (404, "RevisionNotFound", "has no revision 'v2'"),
        (500, "Other", "answers with status 500"),
    ],
)
def test_each_refusal_has_its_own_words(hub, status, code, said):
    hub.faults["ann/x"] = (status, code)
    for work in (
        lambda: fetch_snapshot("ann/x", revision="v2", patterns=["*"]),
        lambda: list_files("ann/x", revision="v2"),
    ):
        with pytest.raises(HubError, match=said) as caught:
            work()
        assert "\n" not in str(caught.value)
        assert TOKEN not in str(caught.value)


def test_a_file_that_is_not_there(hub):
    with pytest.raises(HubError, match="ann/x has no such file"):
        fetch_file("ann/x", "gone.json")


def test_a_name_that_cannot_be_is_not_asked_for(hub):
    with pytest.raises(HubError, match="is not a hub id"):
        fetch_snapshot("a//b", patterns=["*"])
    assert hub.asked == []


def test_where_the_hub_is_away_it_is_tried_once(away, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the hub is tried again"))
    with pytest.raises(
        HubError, match=r"the hub \(127.0.0.1\) cannot be reached .*no local copy of ann/x in the cache"
    ):
        fetch_snapshot("ann/x", patterns=["*"])
    assert hub_room._ask_once.cache_info().misses == 1
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_never_answers_ends_in_time(monkeypatch, away):
    monkeypatch.setattr(hub_room, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert re.search("does not answer within 0 s|ReadTimeout", find_hub_fault())


def test_a_model_is_loaded_with_one_kind_of_weights_and_tells_its_commit(hub, tiny_lcm):
    """Repositories hold pickles, variants and other formats beside what is needed."""
    files = files_of(tiny_lcm)
    weights = "unet/diffusion_pytorch_model.safetensors"
    hub.add("ann/lcm", files={**files, "unet/diffusion_pytorch_model.fp16.safetensors": b"0", "unet/x.bin": b"0"})
    model = load_model("ann/lcm", revision=None, dtype="float32", device="cpu")
    assert model.commit == "0" * 40
    assert model.digest == load_model(str(tiny_lcm), revision=None, dtype="float32", device="cpu").digest
    fetched = {path.rpartition("/resolve/" + "0" * 40 + "/")[2] for path in hub.asked if "/resolve/" in path}
    assert weights in fetched
    assert not {name for name in fetched if "fp16" in name or name.endswith(".bin")}


def test_a_model_that_was_loaded_is_loaded_again_where_the_hub_is_away(hub, tiny_lcm, monkeypatch):
    hub.add("ann/lcm", files=files_of(tiny_lcm))
    digest = load_model("ann/lcm", revision=None, dtype="float32", device="cpu").digest
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model("ann/lcm", revision=None, dtype="float32", device="cpu").digest == digest


def test_a_commit_stays_when_the_branch_moves_on(hub, tiny_lcm):
    hub.add("ann/lcm", files=files_of(tiny_lcm))
    digest = load_model("ann/lcm", revision=None, dtype="float32", device="cpu").digest
    hub.move("ann/lcm", {**files_of(tiny_lcm), "text_encoder/config.json": b"{}"})
    assert load_model("ann/lcm", revision="0" * 40, dtype="float32", device="cpu").digest == digest
    with pytest.raises(ModelError, match=r"text.encoder"):
        load_model("ann/lcm", revision=None, dtype="float32", device="cpu")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no such host", "x"])
@pytest.mark.parametrize("kind", ["model", "lora", "reward", "prompts"])
def test_everything_that_is_loaded_says_the_true_cause(monkeypatch, away, kind, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the hub is tried again"))
    work = {
        "model": lambda: load_model("ann/x", revision=None, dtype="float32", device="cpu"),
        "lora": lambda: locate_lora("ann/x"),
        "reward": lambda: Weights("ann/x", ["*"], "1 GB").find("ann/x", reward="r"),
        "prompts": lambda: load_prompts("hf:ann/x:text"),
    }[kind]
    with pytest.raises(Exception, match=r"cannot be reached .*; no local copy of ann/x in the cache") as caught:
        work()
    assert type(caught.value).__module__ == "rlcm_cli.errors"
    assert "\n" not in str(caught.value)


def test_a_path_that_is_mistyped_is_said_to_be_that_first(away, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/compression").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"'runs/compresion' is not here and .*hub .*; did you mean runs/compression"):
        locate_lora("runs/compresion")
    with pytest.raises(
        ModelError, match=r"'runs/compresion' is not a folder here; did you mean runs/compression.*hub"
    ):
        load_model("runs/compresion", revision=None, dtype="float32", device="cpu")


def test_a_dataset_that_is_mistyped_is_a_configuration_error(away):
    with pytest.raises(ConfigError, match="check the network, or use a file or a built-in set"):
        load_prompts("hf:ann/x:text")
