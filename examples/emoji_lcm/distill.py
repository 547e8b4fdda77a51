"""Latent consistency distillation (Luo et al., arXiv 2310.04378) of the guided teacher.

The student takes the guidance scale as an embedding, as diffusers' LatentConsistencyModelPipeline feeds it.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from transformers import CLIPTokenizer

from examples.emoji_lcm.pipelines import GUIDANCE_DIM, new_unet
from examples.emoji_lcm.precision import mixed_precision
from examples.emoji_lcm.teacher import Teacher
from examples.emoji_lcm.text import encode, tokenize
from examples.emoji_lcm.training import Log, alphas_cumprod, caption_table, cosine, per_sample, update_average

ORIGINAL_STEPS = 50
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
HUBER_C = 1e-3
TARGET_DECAY = 0.95
# diffusers' pipeline asks for w = guidance_scale − 1, by default 7.5.
LARGEST_W = 8.0


def guidance_embedding(w: torch.Tensor) -> torch.Tensor:
    """[B] → [B, 256], exactly the embedding that LatentConsistencyModelPipeline feeds to the U-Net."""
    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    embedding: torch.Tensor = embed(None, w, embedding_dim=GUIDANCE_DIM)
    return embedding


def boundary_scalings(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip, c_out [B, 1, 1, 1] of LCMScheduler at timesteps t [B]."""
    scaled = per_sample(t.float()) * TIMESTEP_SCALING
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    return c_skip, c_out


def slow_components() -> torch.Tensor:
    """Return which of the 256 embedding entries turn less than once over w in 0–8, bool [256].

    The embedding is sin and cos of 1000·w·10000^(−i/127): its fast components are noise to a small network, and a
    projection that has to find the slow ones among them stays nearly dead.
    """
    half = GUIDANCE_DIM // 2
    turns = 1000 * LARGEST_W * 10000 ** (-torch.arange(half) / (half - 1)) / (2 * torch.pi)
    return (turns < 1).repeat(2)


def new_student(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """Take the teacher's weights, with a guidance projection [96, 256] of the slow components alone."""
    student = new_unet(guidance_embedding=True)
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    if missing != ["time_embedding.cond_proj.weight"] or unexpected:
        raise ValueError(f"teacher and student differ: missing {missing}, unexpected {unexpected}")
    with torch.no_grad():
        student.time_embedding.cond_proj.weight.normal_(0, 0.05).mul_(slow_components())
    return student


def distil(
    teacher: Teacher,
    latents: torch.Tensor,
    subject: torch.Tensor,
    colour: torch.Tensor,
    tokenizer: CLIPTokenizer,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    log: Log,
) -> UNet2DConditionModel:
    """Return the averaged student. Latents [N, C, h, w]; subject and colour indices [N]."""
    torch.manual_seed(seed)
    unet, encoder = (m.to(device).eval().requires_grad_(False) for m in (teacher.unet, teacher.text_encoder))
    unet = unet.to(memory_format=torch.channels_last)
    student = new_student(unet).to(device, memory_format=torch.channels_last).train()
    target = copy.deepcopy(student).requires_grad_(False)
    projection = student.time_embedding.cond_proj.weight
    slow = slow_components().to(device)
    projection.register_hook(lambda gradient: gradient * slow)
    rest = [p for p in student.parameters() if p is not projection]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": [projection], "lr": 5 * learning_rate}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, 50, 0.02))
    ids = caption_table(tokenizer)
    with torch.no_grad():
        prompts = encode(encoder, ids.flatten(0, 2).to(device))
        prompts = prompts.view(*ids.shape[:3], *prompts.shape[1:])
        nothing = encode(encoder, tokenize(tokenizer, [""]).to(device))
    bars = alphas_cumprod(device)
    stride = len(bars) // ORIGINAL_STEPS
    started, total = time.monotonic(), 0.0

    def denoised(
        model: UNet2DConditionModel, x: torch.Tensor, t: torch.Tensor, p: torch.Tensor, w: torch.Tensor
    ) -> torch.Tensor:
        """f(x, t) = c_skip·x + c_out·x̂0."""
        noise: torch.Tensor = model(
            x.contiguous(memory_format=torch.channels_last), t, p, timestep_cond=w
        ).sample.float()
        bar = per_sample(bars[t])
        c_skip, c_out = boundary_scalings(t)
        x0 = (x - (1 - bar).sqrt() * noise) / bar.sqrt()
        return c_skip * x + c_out * x0

    for step in range(steps):
        pick = torch.randint(len(latents), (batch,))
        prompt = prompts[subject[pick], colour[pick], torch.randint(ids.shape[2], (batch,))]
        clean = latents[pick].float().to(device)
        t = stride * torch.randint(1, ORIGINAL_STEPS + 1, (batch,), device=device) - 1
        t_before = (t - stride).clamp_min(0)
        w = LARGEST_W * torch.rand(batch, device=device)
        embedding = guidance_embedding(w)
        bar, bar_before = per_sample(bars[t]), per_sample(bars[t_before])
        noisy = bar.sqrt() * clean + (1 - bar).sqrt() * torch.randn_like(clean)
        with mixed_precision(device):
            with torch.no_grad():
                both = unet(
                    noisy.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last),
                    t.repeat(2),
                    torch.cat([prompt, nothing.expand_as(prompt)]),
                ).sample.float()
                conditional, unconditional = both.chunk(2)
                noise = conditional + per_sample(w) * (conditional - unconditional)
                x0 = (noisy - (1 - bar).sqrt() * noise) / bar.sqrt()
                before = bar_before.sqrt() * x0 + (1 - bar_before).sqrt() * noise
                goal = denoised(target, before, t_before, prompt, embedding)
            output = denoised(student, noisy, t, prompt, embedding)
        loss = ((output - goal).square() + HUBER_C**2).sqrt().mean() - HUBER_C
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        decay.step()
        update_average(target, student, TARGET_DECAY)
        total += loss.item()
        if step % 200 == 199 or step == steps - 1:
            log(f"distil {step + 1} loss {total / (step % 200 + 1):.4f} {time.monotonic() - started:.0f} s")
            total = 0.0
    return target.eval().to(memory_format=torch.contiguous_format)
