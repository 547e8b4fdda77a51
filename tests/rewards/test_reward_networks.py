"""Folders of rewards that came from elsewhere: what they must not make transformers do, and what is told of them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_clip import refusal, save_small_clip
from transformers import CLIPModel

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.networks.clip_model import load_clip
from rlcm_cli.rewards.networks.loading import load_network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "clip")


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change(file, **tensors):
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "owner/kernel"},
        {"attn_implementation": {"text_config": "owner/kernel"}},
        {"text_config": {"_attn_implementation": "owner/kernel"}},
    ],
)
def test_code_of_the_hub_is_not_fetched(clip, changes):
    edit(clip / "config.json", **changes)
    assert "names a kernel of the hub" in refusal(RewardError, "clip_score", model=str(clip))


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000])
def test_a_configuration_that_is_no_json_object(clip, text):
    (clip / "config.json").write_text(text)
    assert "config.json is not" in refusal(RewardError, "clip_score", model=str(clip))


@pytest.mark.parametrize(
    "changes",
    [{"text_config": []}, {"projection_dim": "x"}, {"vision_config": {"patch_size": 0}}, {"model_type": "no"}],
)
def test_configurations_that_make_no_network(clip, changes):
    edit(clip / "config.json", **changes)
    assert "cannot be loaded" in refusal(RewardError, "clip_score", model=str(clip))


def test_an_index_never_leads_out_of_its_folder(clip):
    (clip / "model.safetensors").rename(clip.parent / "outside.safetensors")
    names = load_file(clip.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (clip / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RewardError, match=r"outside.safetensors', which is not a safetensors file"):
        load_network(CLIPModel, clip, reward="r", what="a CLIP")


def test_weights_of_another_shape(clip):
    change(clip / "model.safetensors", logit_scale=torch.zeros(3))
    assert "have logit_scale in another shape" in refusal(RewardError, "clip_score", model=str(clip))


def test_quantised_weights(clip):
    name = "text_projection.weight"
    change(clip / "model.safetensors", **{name: load_file(clip / "model.safetensors")[name].to(torch.int8)})
    assert f"stores {name} as I8" in refusal(RewardError, "clip_score", model=str(clip))


def test_weights_that_nothing_uses_are_told(clip, caplog):
    change(clip / "model.safetensors", head=torch.zeros(3))
    load_clip(clip, reward="clip_score")
    (line,) = caplog.messages
    assert "hold 1 tensors that its config.json has no place for, 'head' among them" in line


def test_whole_weights_are_not_spoken_of(clip, caplog):
    change(clip / "model.safetensors", **{"text_model.embeddings.position_ids": torch.arange(8)[None]})
    load_clip(clip, reward="clip_score")
    assert caplog.messages == []


def test_a_tokenizer_to_which_all_words_are_the_same(clip):
    edit(clip / "tokenizer.json", model={"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"})
    assert "the tokenizer in" in refusal(RewardError, "clip_score", model=str(clip))
