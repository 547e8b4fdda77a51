"""The autoencoder: 96×96 pictures ↔ 6×6 latents, of about N(0, 1) in every channel."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderDC

from examples.emoji_lcm.autoencoder import moment_penalty, reconstruction_loss
from examples.emoji_lcm.data import Pictures, to_model_range
from examples.emoji_lcm.training import cosine, update_average
from examples.emoji_sprint.training import Loop

SIZE = 96
SCALE = 16
LATENT_SIZE = SIZE // SCALE


@dataclass(frozen=True)
class Shape:
    """Of an autoencoder: latent channels, then channels and blocks at 2, 4, 8 and 16 pixels a place."""

    latent_channels: int = 64
    channels: tuple[int, int, int, int] = (32, 64, 128, 128)
    encoder_blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    decoder_blocks: tuple[int, int, int, int] = (2, 2, 2, 1)


def new_autoencoder(shape: Shape) -> AutoencoderDC:
    """Build an untrained autoencoder.

    Nothing is computed at the full resolution: with no blocks there, AutoencoderDC goes to and from it in one
    convolution.
    """
    blocks = ("ResBlock",) * 5
    # The first number stands for the full resolution, and is not used.
    channels = (shape.channels[0] // 2, *shape.channels)
    return AutoencoderDC(
        latent_channels=shape.latent_channels,
        attention_head_dim=32,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(0, *shape.encoder_blocks),
        decoder_layers_per_block=(0, *shape.decoder_blocks),
        encoder_qkv_multiscales=((),) * 5,
        decoder_qkv_multiscales=((),) * 5,
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
    )


def train_autoencoder(
    pictures: Pictures, shape: Shape, loop: Loop, *, batch: int, learning_rate: float, seed: int, device: torch.device
) -> AutoencoderDC:
    """Return the averaged weights; the decoder sees latents with noise of std 0–0.1 added."""
    torch.manual_seed(seed)
    model = new_autoencoder(shape).to(device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, loop.steps, 100, 0.01))

    def step(index: int) -> dict[str, float]:
        images = to_model_range(pictures.images[torch.randint(len(pictures), (batch,))]).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            latents = model.encode(images).latent.float()
            noise = torch.randn_like(latents) * (0.1 * torch.rand(batch, 1, 1, 1, device=device))
            output = model.decode(latents + noise).sample.float()
        loss = reconstruction_loss(output, images) + 0.1 * moment_penalty(latents)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        update_average(average, model, min(0.998, (1 + index) / (10 + index)))
        mse = (output.detach() - images).square().mean((1, 2, 3)) / 4
        std = latents.detach().std((0, 2, 3))
        return {
            "loss": loss.item(),
            "PSNR": -10 * mse.log10().mean().item(),
            "least_std": std.min().item(),
            "largest_std": std.max().item(),
        }

    loop.run({"model": model, "average": average, "optimizer": optimizer, "decay": decay}, step)
    finished = average.eval().to(memory_format=torch.contiguous_format)
    finished.register_to_config(scaling_factor=1 / _root_mean_square(finished, pictures))
    return finished


@torch.no_grad()
def _root_mean_square(model: AutoencoderDC, pictures: Pictures, count: int = 1024) -> float:
    chosen = torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).long()
    images = to_model_range(pictures.images[chosen])
    parts = [model.encode(x.to(model.device)).latent for x in torch.split(images, 128)]
    return float(torch.cat(parts).square().mean().sqrt())


@torch.no_grad()
def encode(model: AutoencoderDC, images: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in −1..1 → latents [B, C, h, w] as the transformer has them."""
    latents: torch.Tensor = model.encode(images.to(model.device)).latent * model.config.scaling_factor
    return latents


@torch.no_grad()
def decode(model: AutoencoderDC, latents: torch.Tensor) -> torch.Tensor:
    """Return what `encode` was given."""
    images: torch.Tensor = model.decode(latents.to(model.device) / model.config.scaling_factor).sample
    return images


def encode_pictures(model: AutoencoderDC, pictures: Pictures, batch: int = 256) -> torch.Tensor:
    """Latents float16 [N, C, h, w] of uint8 pictures."""
    parts = [encode(model, to_model_range(images)).half().cpu() for images in torch.split(pictures.images, batch)]
    return torch.cat(parts).contiguous()


def measure(model: AutoencoderDC, pictures: Pictures, batch: int = 128) -> dict[str, float]:
    """PSNR in dB (mean over pictures, peak 255), and how far first differences are off (mean, of 255)."""
    decibels, edges = [], []
    for images in torch.split(pictures.images, batch):
        target = to_model_range(images).to(model.device)
        off = (decode(model, encode(model, target)).clamp(-1, 1) - target) / 2
        decibels.append(-10 * off.square().mean((1, 2, 3)).log10().cpu())
        across, down = off.diff(dim=-1).abs().mean((1, 2, 3)), off.diff(dim=-2).abs().mean((1, 2, 3))
        edges.append((127.5 * (across + down)).cpu())
    return {"psnr_db": torch.cat(decibels).mean().item(), "edge_error": torch.cat(edges).mean().item()}


def load_autoencoder(folder: Path) -> AutoencoderDC:
    """Load for inference."""
    return AutoencoderDC.from_pretrained(folder).eval()
