"""Prompts read by the language models of Qwen."""

import pytest
import torch
from tiny_language_models import build_qwen3, build_qwen25_vl, build_tokenizer

from rlcm_cli.errors import ModelError
from rlcm_cli.families._language_models import check_tokenizer, check_width, count_cut_prompts
from rlcm_cli.families._qwen import condition_freely, name_text, read_lengths


def test_what_does_not_belong_together_is_one_line():
    encoder, tokenizer = build_qwen3(layers=1, width=8, head=False), build_tokenizer()
    check_tokenizer("it", tokenizer, encoder, framed=True)
    check_tokenizer("it", tokenizer, build_qwen25_vl(layers=1, width=16), framed=True)
    encoder.config.vocab_size = 200
    with pytest.raises(ModelError, match="it: its tokenizer has 300 tokens, and its text encoder knows 200; use the"):
        check_tokenizer("it", tokenizer, encoder, framed=True)
    check_width("it", 8, 8)
    with pytest.raises(ModelError, match="it: its text encoder gives vectors of 8 numbers, and its transformer takes"):
        check_width("it", 8, 9)


def test_the_frame_of_a_prompt_counts():
    tokenizer = build_tokenizer()

    def frame(prompt):
        return f"<|im_start|>{prompt}<|im_end|>"

    length = len(tokenizer("cat").input_ids)
    assert count_cut_prompts(tokenizer, frame, ["", "cat"], 2 + length) == (0, length)
    assert count_cut_prompts(tokenizer, frame, ["", "cat", "猫 と 犬"], 2 + length) == (1, length)


def test_a_mask_tells_lengths():
    rows = name_text("negative_", torch.ones(3, 4))
    assert rows["negative_prompt_mask"].tolist() == [True] * 3
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert read_lengths(mask) == [2, 1]
    assert read_lengths(mask.to("meta")) == [3, 3]
    assert {name: len(row) for name, row in condition_freely(4).items()} == dict.fromkeys(
        ["prompt_embeds", "prompt_mask", "negative_prompt_embeds", "negative_prompt_mask"], 64
    )
