"""The tiny autoencoder: 64×64 pictures ↔ 8×8 latents of 12 channels, about N(0, 1) each."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as fn
from diffusers import AutoencoderTiny

from examples.emoji_lcm.data import Pictures, to_model_range
from examples.emoji_lcm.precision import mixed_precision

LATENT_CHANNELS = 12
LATENT_SIZE = 8
WIDTH = 32


def new_autoencoder() -> AutoencoderTiny:
    """Build an untrained autoencoder."""
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(3, 3, 2, 1),
        scaling_factor=1.0,
    )


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + 2·MSE on pixels in −1..1, plus L1 on their first differences."""
    difference = output - target
    loss = difference.abs().mean() + 2 * difference.square().mean()
    for edge in _edges(difference):
        loss = loss + 0.5 * edge.abs().mean()
    return loss


def moment_penalty(latents: torch.Tensor) -> torch.Tensor:
    """Squared distance of every channel's batch mean from 0 and log std from 0; latents [B, C, h, w]."""
    mean = latents.mean((0, 2, 3))
    std = latents.std((0, 2, 3))
    return mean.square().mean() + std.clamp_min(1e-3).log().square().mean()


def train_autoencoder(
    pictures: Pictures, *, steps: int, batch: int, seed: int, device: torch.device, log: Callable[[str], None]
) -> AutoencoderTiny:
    """Adam with a one-cycle learning rate; the decoder sees latents with noise of std 0–0.15 added."""
    torch.manual_seed(seed)
    model = new_autoencoder().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05, final_div_factor=100)
    started = time.monotonic()
    for step in range(steps):
        images = to_model_range(pictures.images[torch.randint(len(pictures), (batch,))]).to(device)
        with mixed_precision(device):
            latents = model.encode(images.contiguous(memory_format=torch.channels_last)).latents.float()
            noise = torch.randn_like(latents) * (0.15 * torch.rand(batch, 1, 1, 1, device=device))
            output = model.decode(latents + noise).sample
        loss = reconstruction_loss(output.float(), images) + 0.1 * moment_penalty(latents)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        cycle.step()
        if step % 200 == 0 or step == steps - 1:
            mse = fn.mse_loss(output.float(), images).item() / 4
            std = latents.std((0, 2, 3))
            log(
                f"autoencoder {step} loss {loss.item():.4f} PSNR {-10 * torch.tensor(mse).log10().item():.2f} "
                f"latent std {std.min().item():.2f}–{std.max().item():.2f} {time.monotonic() - started:.0f} s"
            )
    return model.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def encode_pictures(
    model: AutoencoderTiny, pictures: Pictures, device: torch.device, batch: int = 256
) -> torch.Tensor:
    """Latents float16 [N, C, h, w] of uint8 pictures."""
    model = model.to(device)
    parts = [
        model.encode(to_model_range(images).to(device)).latents.half().cpu()
        for images in torch.split(pictures.images, batch)
    ]
    return torch.cat(parts).contiguous()


@torch.no_grad()
def psnr(model: AutoencoderTiny, pictures: Pictures, device: torch.device, batch: int = 256) -> float:
    """Mean over pictures of the PSNR in dB (peak 255)."""
    values = []
    for images in torch.split(pictures.images, batch):
        target = to_model_range(images).to(device)
        output = model.decode(model.encode(target).latents).sample.clamp(-1, 1)
        values.append(-10 * ((output - target) / 2).square().mean((1, 2, 3)).log10().cpu())
    return torch.cat(values).mean().item()


def load_autoencoder(folder: Path) -> AutoencoderTiny:
    """Load for inference."""
    return AutoencoderTiny.from_pretrained(folder).eval()
