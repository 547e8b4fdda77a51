"""The teacher: flow matching on the latents, velocity noise − x₀ at (1 − σ) x₀ + σ noise."""

from __future__ import annotations

import copy

import torch
from diffusers import SanaTransformer2DModel

from examples.emoji_lcm.precision import mixed_precision
from examples.emoji_lcm.training import cosine, per_sample, update_average
from examples.emoji_sprint.pipelines import new_transformer
from examples.emoji_sprint.text import Captions, caption_slots
from examples.emoji_sprint.training import Loop, descend

DROPPED_CAPTIONS = 0.1
EMA_DECAY = 0.999
UNIFORM_SHARE = 0.2


def draw_levels(count: int, device: torch.device) -> torch.Tensor:
    """σ [B]: sigmoid of N(0, 1) (arXiv 2403.03206), or, for a fifth, uniform in 0–1.

    The first hardly ever comes near 1, where a sampler starts and the student draws all that it draws in one step.
    """
    levels = torch.randn(count, device=device).sigmoid()
    return torch.where(torch.rand(count, device=device) < UNIFORM_SHARE, torch.rand(count, device=device), levels)


def train_teacher(
    latents: torch.Tensor,
    subject: torch.Tensor,
    colour: torch.Tensor,
    captions: Captions,
    loop: Loop,
    *,
    width: int,
    depth: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
) -> SanaTransformer2DModel:
    """Train on latents [N, C, h, w] with subject and colour indices [N]; returns the averaged weights."""
    torch.manual_seed(seed)
    model = new_transformer(
        channels=latents.shape[1], size=latents.shape[2], guidance_embedding=False, width=width, depth=depth
    )
    model = model.to(device).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-2)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, loop.steps, 200, 0.02))
    slots = caption_slots()
    captions = captions.to(device)

    def step(index: int) -> dict[str, float]:
        pick = torch.randint(len(latents), (batch,))
        caption = slots[subject[pick], colour[pick], torch.randint(slots.shape[2], (batch,))]
        caption[torch.rand(batch) < DROPPED_CAPTIONS] = 0
        clean = latents[pick].to(device).float()
        noise = torch.randn_like(clean)
        level = draw_levels(batch, device)
        noised = torch.lerp(clean, noise, per_sample(level))
        with mixed_precision(device):
            velocity = model(noised, timestep=level, **captions.take(caption.to(device))).sample
        loss = (velocity.float() - (noise - clean)).square().mean()
        descend(loss, optimizer, decay)
        update_average(average, model, min(EMA_DECAY, (1 + index) / (10 + index)))
        return {"loss": loss.item()}

    loop.run({"model": model, "average": average, "optimizer": optimizer, "decay": decay}, step)
    return average.eval()
