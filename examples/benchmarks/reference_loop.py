"""RLCM as a plain loop over diffusers' pipeline and LCMScheduler, in the manner of the research scripts.

Everything stays in memory; pictures are drawn a few at a time, and training goes through the timesteps one by one: a
forward, the scheduler's step of each sample (it takes one timestep a call), a backward. After `update` samples with
all their timesteps the gradient is clipped and the optimizer steps.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from examples.benchmarks.costs import Cost, now
from rlcm_cli.models.libraries import quiet_libraries

CLIP_RANGE = 1e-4
ADVANTAGE_CLIP = 10.0
LARGEST_NORM = 5.0


@dataclass(frozen=True)
class ReferenceSettings:
    """What the loop does."""

    images: int
    steps: int
    sample: int
    """Images a batch."""
    train: int
    """Samples a forward and backward pass, all at one call of their trajectories."""
    update: int
    """Samples an optimizer step."""
    last_call: bool
    """Whether the last call is noised and trained too, as the published code does, although no reward sees it."""
    guidance_scale: float


@dataclass(frozen=True)
class Batch:
    """Drawn samples: B of them, H calls, A trained ones."""

    embeds: Tensor
    """[B, tokens, width]."""
    states: Tensor
    """[B, H, C, h, w]."""
    actions: Tensor
    """[B, A, C, h, w]."""
    log_probs: Tensor
    """float32 [B, A]."""
    rewards: Tensor
    """float32 [B]."""


class ReferenceLoop:
    """The model, and its iterations' costs."""

    def __init__(
        self, folder: Path, settings: ReferenceSettings, prompts: list[str], device: str, dtype: torch.dtype, rank: int
    ) -> None:
        self.settings, self.prompts, self.device, self.dtype = settings, prompts, torch.device(device), dtype
        with quiet_libraries():
            self.pipeline: Any = LatentConsistencyModelPipeline.from_pretrained(
                folder, dtype=dtype, safety_checker=None, requires_safety_checker=False
            )
        self.pipeline.scheduler = LCMScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.scheduler.set_timesteps(settings.steps, device=self.device)
        self.pipeline.to(self.device)
        for module in (self.pipeline.unet, self.pipeline.vae, self.pipeline.text_encoder):
            module.requires_grad_(False)
        self.pipeline.unet.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                init_lora_weights="gaussian",
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            )
        )
        self.parameters = [p for p in self.pipeline.unet.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.to(torch.float32)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.0)
        self.choice = random.Random(0)
        self.drift = 0.0
        """Largest |ratio − 1| before the first update: what is replayed is what was drawn."""

    def iterate(self) -> dict[str, Cost]:
        """Draw, score and train an iteration: phase → its cost."""
        scoring, started = Cost(0.0, 0.0), now()
        batches = []
        for _ in range(self.settings.images // self.settings.sample):
            batch, took = self.draw()
            batches.append(batch)
            scoring += took
        drawn = now()
        self.train(batches)
        return {"sample": drawn - started - scoring, "score": scoring, "train": now() - drawn}

    def autocast(self) -> torch.autocast:
        """Give the context for a U-Net whose LoRA alone is float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def draw(self) -> tuple[Batch, Cost]:
        """Draw and score a batch; give what scoring took beside it."""
        pipeline, scheduler, count = self.pipeline, self.pipeline.scheduler, self.settings.sample
        pipeline.unet.eval()
        prompts = [self.choice.choice(self.prompts) for _ in range(count)]
        embeds, _ = pipeline.encode_prompt(prompts, self.device, 1, False)
        config = pipeline.unet.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(shape, device=self.device, dtype=self.dtype)
        states, actions, log_probs = [], [], []
        scheduler.set_timesteps(self.settings.steps, device=self.device)
        for call, timestep in enumerate(scheduler.timesteps):
            states.append(latents)
            output = self.predict(latents, timestep, embeds)
            following, denoised = scheduler.step(output, timestep, latents, return_dict=False)
            mean, std = self.gaussian(call, denoised)
            if call == self.settings.steps - 1:
                if not self.settings.last_call:
                    break
                following = mean + std * torch.randn_like(mean)
            latents = following.to(self.dtype)
            actions.append(latents)
            log_probs.append(log_density(latents, mean, std))
        pictures = pipeline.vae.decode((denoised / pipeline.vae.config.scaling_factor).to(self.dtype)).sample
        pictures = pipeline.image_processor.postprocess(pictures, output_type="pt")
        started = now()
        rewards = torch.tensor([jpeg_reward(picture) for picture in pictures], device=self.device)
        took = now() - started
        return Batch(embeds, torch.stack(states, 1), torch.stack(actions, 1), torch.stack(log_probs, 1), rewards), took

    def predict(self, latents: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        """Ask the U-Net, with the guidance scale's embedding."""
        unet = self.pipeline.unet
        w = torch.full((len(latents),), self.settings.guidance_scale - 1)
        embedding = self.pipeline.get_guidance_scale_embedding(w, unet.config.time_cond_proj_dim)
        with self.autocast():
            output: Tensor = unet(
                latents,
                timesteps,
                timestep_cond=embedding.to(self.device, self.dtype),
                encoder_hidden_states=embeds,
                return_dict=False,
            )[0]
        return output

    def gaussian(self, call: int, denoised: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of what follows a call."""
        scheduler = self.pipeline.scheduler
        following = scheduler.timesteps[min(call + 1, self.settings.steps - 1)]
        alpha = scheduler.alphas_cumprod.to(self.device)[following]
        return alpha.sqrt() * denoised, (1 - alpha).sqrt()

    def train(self, batches: list[Batch]) -> None:
        """Update the policy on what was drawn, a call of a few samples at a time."""
        settings = self.settings
        self.pipeline.unet.train()
        rewards = torch.cat([batch.rewards for batch in batches])
        advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
        embeds, states, actions, old = (
            torch.cat([getattr(batch, name) for batch in batches])
            for name in ("embeds", "states", "actions", "log_probs")
        )
        order = torch.randperm(settings.images, device=self.device)
        # The calls of each sample in an order of its own.
        calls = torch.stack([torch.randperm(actions.shape[1], device=self.device) for _ in range(settings.images)])
        micro_steps = settings.update // settings.train * actions.shape[1]
        done = 0
        for first in range(0, settings.images, settings.train):
            rows = order[first : first + settings.train]
            for position in range(actions.shape[1]):
                at = calls[rows, position]
                log_probs = self.replay(states[rows, at], actions[rows, at], at, embeds[rows])
                ratio = torch.exp(log_probs - old[rows, at])
                if not self.optimizer.state:
                    self.drift = max(self.drift, float((ratio.detach() - 1).abs().max()))
                clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
                loss = torch.maximum(-advantages[rows] * ratio, -advantages[rows] * clipped).mean()
                (loss / micro_steps).backward()
                done += 1
                if done % micro_steps == 0:
                    torch.nn.utils.clip_grad_norm_(self.parameters, LARGEST_NORM)
                    self.optimizer.step()
                    self.optimizer.zero_grad()

    def replay(self, states: Tensor, actions: Tensor, calls: Tensor, embeds: Tensor) -> Tensor:
        """Give the log-probabilities of stored actions under the present policy, float32 [B]."""
        scheduler = self.pipeline.scheduler
        output = self.predict(states, scheduler.timesteps[calls], embeds)
        log_probs = []
        for row, call in enumerate(calls.tolist()):
            scheduler._step_index = call
            part = slice(row, row + 1)
            _, denoised = scheduler.step(output[part], scheduler.timesteps[call], states[part], return_dict=False)
            log_probs.append(log_density(actions[part], *self.gaussian(call, denoised)))
        return torch.cat(log_probs)


def log_density(actions: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give the mean log-density over the dimensions of each action, float32 [B]."""
    mean, std = mean.float(), std.float()
    density = -((actions.float() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=(1, 2, 3))


def jpeg_reward(picture: Tensor) -> float:
    """Give the negative kilobytes of the JPEG: float [3, H, W] in 0 … 1."""
    pixels = (picture.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return -file.tell() / 1000
