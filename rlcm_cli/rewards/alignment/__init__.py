"""Rewards from a vision-language judge that is asked about the images.

`settings` holds how it is asked, `judges` the judge's protocol; `openai`, `llava_server` and `local` are the three
judges, which `transport`, `pickles` and `images` serve; `prompt_image_alignment` with `bertscore` and `vqa` are the
rewards.
"""

from rlcm_cli.rewards.alignment import prompt_image_alignment, vqa

ENTRIES = {**prompt_image_alignment.ENTRIES, **vqa.ENTRIES}

__all__ = ["ENTRIES"]
