"""Prompt sets: where prompts come from, which are held out, and in which order they are drawn."""

from rlcm_cli.prompts.order import draw_prompts, split_prompts
from rlcm_cli.prompts.sources import PROMPT_SETS, load_prompts

__all__ = ["PROMPT_SETS", "draw_prompts", "load_prompts", "split_prompts"]
