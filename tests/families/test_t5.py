"""Prompts that T5 reads."""

import json

import pytest
from tiny_t5_pipelines import build_t5_tokenizer
from tokenizers import Tokenizer
from transformers import T5TokenizerFast

from rlcm_cli.families._t5 import count_cut_prompts
from rlcm_cli.models.fingerprint import _digest_tokenizer as digest_tokenizer


@pytest.fixture
def tokenizer():
    return build_t5_tokenizer()


def test_a_prompt_is_cut_from_one_token_more_than_is_read(tokenizer):
    prompt = "a dog on blue"
    length = len(tokenizer(prompt).input_ids)
    assert tokenizer(prompt).input_ids[-1] == tokenizer.eos_token_id
    assert count_cut_prompts(tokenizer, ["", prompt], length) == (0, length)
    assert count_cut_prompts(tokenizer, ["", prompt], length - 1) == (1, length - 1)


def test_the_scores_of_a_vocabulary_are_part_of_what_makes_an_image(tokenizer):
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    assert state["model"]["type"] == "Unigram"
    state["model"]["vocab"][-1][1] -= 1e-3
    other = T5TokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        extra_ids=0,
        model_max_length=tokenizer.model_max_length,
    )
    assert other.get_vocab() == tokenizer.get_vocab()
    assert digest_tokenizer(other) != digest_tokenizer(tokenizer)
