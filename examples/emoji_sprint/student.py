"""The guided teacher, distilled to one to four steps, in the parametrisation of SANA-Sprint.

In what the transformer is fed, y = (1 − τ) x₀ + τ noise, all factors of `SanaSprintPipeline` and `SCMScheduler`
cancel: its output is the teacher's velocity, it is told the time τ = sin s / (sin s + cos s) of an angle s in 0–π/2,
and its guess of x₀ is y − τ · output. So the student starts as its teacher. From there it learns the consistency
function itself: anywhere on a trajectory of the guided teacher from noise to latents, its guess is the end of it. The
trajectories are drawn before, so that the end is known, and is not the student's own guess from a little nearer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel
from safetensors.torch import load_file, save_file

from examples.emoji_lcm.precision import mixed_precision
from examples.emoji_lcm.training import cosine, per_sample, update_average
from examples.emoji_sprint.pipelines import new_transformer
from examples.emoji_sprint.text import Captions, caption_slots
from examples.emoji_sprint.training import Loop, descend

INTERVALS = 12
"""Of a trajectory, and so model calls of the teacher with guidance."""
FIRST_SHARE = 0.3
"""Of the samples that are trained at π/2, whence every image starts."""
LEAST_GUIDANCE, LARGEST_GUIDANCE = 1.0, 7.0
HUBER_C = 0.01
EMA_DECAY = 0.998
CHUNK = 250
"""Trajectories of a file."""


@dataclass(frozen=True)
class Trajectories:
    """The guided teacher's way from noise to latents.

    states float16 [N, INTERVALS + 1, C, h, w], and levels τ float32 [N, INTERVALS + 1], from 1 down to 0; the row of
    `Captions` int64 [N] and the guidance scale float32 [N].
    """

    states: torch.Tensor
    levels: torch.Tensor
    caption: torch.Tensor
    guidance: torch.Tensor


def level_of(angle: torch.Tensor) -> torch.Tensor:
    """τ of angles s."""
    return angle.sin() / (angle.sin() + angle.cos())


def guess(output: torch.Tensor, noised: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """x₀ [B, C, h, w] of the transformer's output for latents of levels τ [B]."""
    return noised - per_sample(level) * output


def draw_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Levels [count, INTERVALS + 1] of evenly spaced angles, each but the ends moved by up to half an interval."""
    moved = torch.rand(count, INTERVALS + 1, generator=generator) - 0.5
    moved[:, 0] = moved[:, -1] = 0
    return level_of((torch.arange(INTERVALS, -1, -1) + moved) * (math.pi / 2 / INTERVALS))


Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def follow(velocity: Velocity, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """States [B, S + 1, C, h, w] of dy/dτ = velocity(y, τ), from noise, at levels [B, S + 1].

    By Adams-Bashforth of order 2: it calls the velocity once an interval, as Euler does, and takes into account how it
    has changed since the last call.
    """
    state, states = noise, [noise]
    last, last_width = None, None
    for index in range(levels.shape[1] - 1):
        now, width = velocity(state, levels[:, index]), per_sample(levels[:, index + 1] - levels[:, index])
        mean = now if last is None else now + (now - last) * (width / (2 * last_width))
        state = state + width * mean
        states.append(state)
        last, last_width = now, width
    return torch.stack(states, 1)


def guided(
    teacher: SanaTransformer2DModel, captions: Captions, caption: torch.Tensor, guidance: torch.Tensor
) -> Velocity:
    """Return the teacher's velocity under classifier-free guidance, for captions and scales [B]."""
    conditions = captions.take(torch.cat([caption, torch.zeros_like(caption)]))

    def velocity(state: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        with mixed_precision(state.device):
            both = teacher(state.repeat(2, 1, 1, 1), timestep=level.repeat(2), **conditions).sample.float()
        conditional, unconditional = both.chunk(2)
        guided: torch.Tensor = unconditional + per_sample(guidance) * (conditional - unconditional)
        return guided

    return velocity


@torch.no_grad()
def draw_trajectories(
    teacher: SanaTransformer2DModel,
    subject: torch.Tensor,
    colour: torch.Tensor,
    captions: Captions,
    folder: Path,
    *,
    count: int,
    seed: int,
    device: torch.device,
) -> Trajectories:
    """Draw trajectories, or read those that are there, for captions of pictures of subject and colour indices [N].

    They are kept in files of `CHUNK` trajectories, so that after a kill only the last is drawn again.
    """
    folder.mkdir(exist_ok=True)
    teacher, captions, slots = teacher.to(device).eval(), captions.to(device), caption_slots()
    channels, side = teacher.config.in_channels, teacher.config.sample_size
    files = [folder / f"{first:06d}.safetensors" for first in range(0, count, CHUNK)]
    for number, file in enumerate(files):
        if file.exists():
            continue
        size = min(CHUNK, count - number * CHUNK)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        pick = torch.randint(len(subject), (size,), generator=generator)
        slot = torch.randint(slots.shape[2], (size,), generator=generator)
        caption = slots[subject[pick], colour[pick], slot]
        scale = LEAST_GUIDANCE + (LARGEST_GUIDANCE - LEAST_GUIDANCE) * torch.rand(size, generator=generator)
        levels = draw_levels(size, generator)
        noise = torch.randn(size, channels, side, side, generator=generator)
        parts = [
            follow(guided(teacher, captions, c.to(device), g.to(device)), n.to(device), t.to(device)).half().cpu()
            for c, g, n, t in zip(*(torch.split(x, 64) for x in (caption, scale, noise, levels)), strict=True)
        ]
        fresh = file.with_suffix(".new")
        save_file({"states": torch.cat(parts), "levels": levels, "caption": caption, "guidance": scale}, fresh)
        fresh.replace(file)
    chunks = [load_file(file) for file in files]
    return Trajectories(**{name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]})


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
    trajectories: Trajectories,
    captions: Captions,
    loop: Loop,
    *,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
) -> SanaTransformer2DModel:
    """Train the teacher's weights to guess the end of its trajectories from anywhere on them; return their average."""
    torch.manual_seed(seed)
    student = new_student(teacher.cpu()).to(device).train()
    average = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, loop.steps, 50, 0.02))
    captions = captions.to(device)

    def step(index: int) -> dict[str, float]:
        pick = torch.randint(len(trajectories.states), (batch,))
        place = torch.randint(INTERVALS, (batch,))
        place[torch.rand(batch) < FIRST_SHARE] = 0
        state, end = (trajectories.states[pick, where].to(device).float() for where in (place, INTERVALS))
        level = trajectories.levels[pick, place].to(device)
        guidance = trajectories.guidance[pick].to(device) * student.config.guidance_embeds_scale
        with mixed_precision(device):
            conditions = captions.take(trajectories.caption[pick].to(device))
            output = student(state, timestep=level, guidance=guidance, **conditions).sample.float()
        loss = ((guess(output, state, level) - end).square() + HUBER_C**2).sqrt().mean() - HUBER_C
        descend(loss, optimizer, decay)
        update_average(average, student, min(EMA_DECAY, (1 + index) / (10 + index)))
        return {"loss": loss.item()}

    loop.run({"student": student, "average": average, "optimizer": optimizer, "decay": decay}, step)
    return average.eval()
