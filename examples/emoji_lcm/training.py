"""What teacher and distillation share: captions as token ids, noise schedule, learning rate, average."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import CLIPTokenizer

from examples.emoji_lcm.pipelines import new_ddim
from examples.emoji_lcm.subjects import COLOUR_NAMES, SUBJECTS, captions
from examples.emoji_lcm.text import tokenize

# A common multiple of the numbers of captions (7 on white, 3 on a colour): each is drawn equally often.
CAPTION_SLOTS = 21


def caption_table(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Token ids int64 [subjects, colours, CAPTION_SLOTS, 24]."""
    rows = []
    for subject in SUBJECTS:
        for colour in COLOUR_NAMES:
            ids = tokenize(tokenizer, captions(subject, colour))
            rows.append(ids.repeat(CAPTION_SLOTS // len(ids), 1))
    return torch.stack(rows).view(len(SUBJECTS), len(COLOUR_NAMES), CAPTION_SLOTS, -1)


def alphas_cumprod(device: torch.device) -> torch.Tensor:
    """ᾱ_t float32 [1000] of the shipped schedulers."""
    bars: torch.Tensor = new_ddim().alphas_cumprod
    return bars.to(device)


def per_sample(values: torch.Tensor) -> torch.Tensor:
    """[B] → [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def cosine(step: int, steps: int, warmup: int, last: float) -> float:
    """Learning-rate factor: linear warm-up to 1, then half a cosine down to `last`."""
    if step < warmup:
        return (step + 1) / warmup
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Average ← decay · average + (1 − decay) · model, for every parameter."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


Log = Callable[[str], None]
