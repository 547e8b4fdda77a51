"""Consistency distillation of the guided teacher to one to four steps, in the parametrisation of SANA-Sprint.

In what the transformer is fed, y = (1 − τ) x₀ + τ noise, all factors of `SanaSprintPipeline` and `SCMScheduler`
cancel: its output is the teacher's velocity, it is told the time τ = sin s / (sin s + cos s) of an angle s in 0–π/2,
and its guess of x₀ is y − τ · output. So the student starts as its teacher, and learns to give the same guess all
along a path.
"""

from __future__ import annotations

import copy
import math

import torch
from diffusers import SanaTransformer2DModel

from examples.emoji_lcm.training import cosine, per_sample, update_average
from examples.emoji_sprint.pipelines import new_transformer
from examples.emoji_sprint.text import Captions, caption_slots
from examples.emoji_sprint.training import Loop

INTERVALS = 32
"""Of the angles that the student is trained at; between two of them, the teacher takes one step."""
FIRST_SHARE = 0.25
"""Of the samples that are trained at π/2, whence every image starts."""
LEAST_GUIDANCE, LARGEST_GUIDANCE = 1.0, 7.0
HUBER_C = 1e-3
TARGET_DECAY = 0.95
EMA_DECAY = 0.995


def level_of(angle: torch.Tensor) -> torch.Tensor:
    """τ of angles s, both [B]."""
    return angle.sin() / (angle.sin() + angle.cos())


def guess(output: torch.Tensor, noised: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """x₀ [B, C, h, w] of the transformer's output for latents of levels τ [B]."""
    return noised - per_sample(level) * output


def new_student(teacher: SanaTransformer2DModel) -> SanaTransformer2DModel:
    """Take the teacher's weights, with a guidance embedding that does nothing yet."""
    config = teacher.config
    student = new_transformer(
        channels=config.in_channels,
        size=config.sample_size,
        guidance_embedding=True,
        width=config.num_attention_heads * config.attention_head_dim,
        depth=config.num_layers,
    )
    weights = {name.replace("time_embed.emb.", "time_embed."): value for name, value in teacher.state_dict().items()}
    missing, unexpected = student.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("time_embed.guidance_embedder.") for name in missing):
        raise ValueError(f"teacher and student differ: missing {missing}, unexpected {unexpected}")
    with torch.no_grad():
        embedder = student.time_embed.guidance_embedder
        # As with the time: what is embedded, a tenth of the scale, is in 0.1–0.7.
        embedder.linear_1.weight.mul_(4)
        embedder.linear_2.weight.zero_()
        embedder.linear_2.bias.zero_()
    return student


def distil(
    teacher: SanaTransformer2DModel,
    latents: torch.Tensor,
    subject: torch.Tensor,
    colour: torch.Tensor,
    captions: Captions,
    loop: Loop,
    *,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
) -> SanaTransformer2DModel:
    """Return the averaged student. Latents [N, C, h, w]; subject and colour indices [N]."""
    torch.manual_seed(seed)
    teacher = teacher.to(device).eval().requires_grad_(False)
    student = new_student(teacher).to(device).train()
    target, average = (copy.deepcopy(student).requires_grad_(False) for _ in range(2))
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, loop.steps, 50, 0.02))
    slots = caption_slots()
    captions = captions.to(device)
    scale = student.config.guidance_embeds_scale

    def step(index: int) -> dict[str, float]:
        pick = torch.randint(len(latents), (batch,))
        caption = slots[subject[pick], colour[pick], torch.randint(slots.shape[2], (batch,))]
        conditions = captions.take(caption.to(device))
        of_both = captions.take(torch.cat([caption, torch.zeros_like(caption)]).to(device))
        clean = latents[pick].to(device).float()
        place = torch.randint(1, INTERVALS + 1, (batch,), device=device)
        place[torch.rand(batch, device=device) < FIRST_SHARE] = INTERVALS
        level, before = (level_of(n * (math.pi / 2 / INTERVALS)) for n in (place, place - 1))
        guidance = LEAST_GUIDANCE + (LARGEST_GUIDANCE - LEAST_GUIDANCE) * torch.rand(batch, device=device)
        noised = torch.lerp(clean, torch.randn_like(clean), per_sample(level))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                both = teacher(noised.repeat(2, 1, 1, 1), timestep=level.repeat(2), **of_both).sample.float()
                conditional, unconditional = both.chunk(2)
                velocity = unconditional + per_sample(guidance) * (conditional - unconditional)
                nearer = noised + per_sample(before - level) * velocity
                goal = target(nearer, timestep=before, guidance=guidance * scale, **conditions).sample.float()
                goal = guess(goal, nearer, before)
            output = student(noised, timestep=level, guidance=guidance * scale, **conditions).sample.float()
        loss = ((guess(output, noised, level) - goal).square() + HUBER_C**2).sqrt().mean() - HUBER_C
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        decay.step()
        update_average(target, student, TARGET_DECAY)
        update_average(average, student, min(EMA_DECAY, (1 + index) / (10 + index)))
        return {"loss": loss.item()}

    parts = {"student": student, "target": target, "average": average, "optimizer": optimizer, "decay": decay}
    loop.run(parts, step)
    return average.eval()
