"""Prompts read by CLIP's text encoders."""

import torch
from model_helpers import load_tiny

from rlcm_cli.families._clip import count_cut_prompts, encode_prompt, with_negative


def test_a_guided_batch_has_the_empty_prompts_first():
    table = {"prompt_embeds": torch.ones(2, 3), "negative_prompt_embeds": torch.zeros(2, 3), "time_ids": torch.ones(2)}
    both = with_negative(table)
    assert both.keys() == {"prompt_embeds", "time_ids"}
    assert both["prompt_embeds"].tolist() == [[0] * 3] * 2 + [[1] * 3] * 2
    assert both["time_ids"].tolist() == [1] * 4


def test_a_prompt_is_encoded_with_its_negative_where_there_are_two_predictions(tiny_lcm):
    model = load_tiny(tiny_lcm)
    once = encode_prompt(model.pipeline, "cat", model.device, guided_twice=False)
    twice = encode_prompt(model.pipeline, "cat", model.device, guided_twice=True)
    assert once.keys() == {"prompt_embeds"}
    assert twice.keys() == {"prompt_embeds", "negative_prompt_embeds"}
    assert torch.equal(once["prompt_embeds"], twice["prompt_embeds"])
    assert once["prompt_embeds"].ndim == 2


def test_prompts_that_are_cut_are_counted(tiny_lcm):
    pipeline = load_tiny(tiny_lcm).pipeline
    longest = pipeline.tokenizer.model_max_length
    assert count_cut_prompts(pipeline, ["cat", "cat " * longest]) == (1, longest)
