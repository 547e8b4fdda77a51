"""The autoencoder: 96×96 pictures ↔ 3×3 latents, of about N(0, 1) in every channel."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderDC

from examples.emoji_lcm.autoencoder import moment_penalty, reconstruction_loss
from examples.emoji_lcm.data import Pictures, to_model_range
from examples.emoji_lcm.precision import mixed_precision
from examples.emoji_lcm.training import cosine, update_average
from examples.emoji_sprint.training import Loop, descend

DECODER_NOISE = 0.1
"""Largest std of the noise on the latents that a decoder is trained on: a model does not draw exact ones."""
SIZE = 96
SCALE = 32
LATENT_SIZE = SIZE // SCALE


@dataclass(frozen=True)
class Shape:
    """Of an autoencoder: latent channels, then channels and blocks at 2, 4, 8, 16 and 32 pixels a place."""

    latent_channels: int = 128
    channels: tuple[int, int, int, int, int] = (32, 64, 128, 128, 256)
    encoder_blocks: tuple[int, int, int, int, int] = (1, 1, 1, 1, 1)
    decoder_blocks: tuple[int, int, int, int, int] = (2, 2, 2, 1, 1)


def new_autoencoder(shape: Shape) -> AutoencoderDC:
    """Build an untrained autoencoder.

    Nothing is computed at the full resolution: with no blocks there, AutoencoderDC goes to and from it in one
    convolution.
    """
    blocks = ("ResBlock",) * 6
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
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
    )


def train_autoencoder(
    pictures: Pictures, shape: Shape, loop: Loop, *, batch: int, learning_rate: float, seed: int, device: torch.device
) -> AutoencoderDC:
    """Return the averaged weights; the decoder sees latents with noise added."""
    torch.manual_seed(seed)
    model = new_autoencoder(shape).to(device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, loop.steps, 100, 0.01))

    def step(index: int) -> dict[str, float]:
        images = to_model_range(pictures.images[torch.randint(len(pictures), (batch,))]).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        with mixed_precision(device):
            latents = model.encode(images).latent.float()
            output = model.decode(latents + draw_noise(latents)).sample.float()
        loss = reconstruction_loss(output, images) + 0.1 * moment_penalty(latents)
        descend(loss, optimizer, decay)
        update_average(average, model, min(0.998, (1 + index) / (10 + index)))
        std = latents.detach().std((0, 2, 3))
        return {
            "loss": loss.item(),
            "PSNR": psnr(output.detach(), images).mean().item(),
            "least_std": std.min().item(),
            "largest_std": std.max().item(),
        }

    loop.run({"model": model, "average": average, "optimizer": optimizer, "decay": decay}, step)
    finished = average.eval().to(memory_format=torch.contiguous_format)
    finished.register_to_config(scaling_factor=1 / _root_mean_square(finished, pictures))
    return finished


def train_decoder(
    model: AutoencoderDC,
    latents: torch.Tensor,
    pictures: Pictures,
    loop: Loop,
    *,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
) -> AutoencoderDC:
    """Train the decoder further on the latents [N, C, h, w] of the pictures, which stay as they are."""
    torch.manual_seed(seed)
    model = model.to(device, memory_format=torch.channels_last).requires_grad_(False)
    decoder = model.decoder.requires_grad_(True).train()
    average = copy.deepcopy(decoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, loop.steps, 100, 0.01))

    def step(index: int) -> dict[str, float]:
        pick = torch.randint(len(pictures), (batch,))
        images = to_model_range(pictures.images[pick]).to(device)
        own = latents[pick].to(device).float() / model.config.scaling_factor
        with mixed_precision(device):
            output = model.decode(own + draw_noise(own)).sample.float()
        loss = reconstruction_loss(output, images)
        descend(loss, optimizer, decay)
        update_average(average, decoder, min(0.998, (1 + index) / (10 + index)))
        return {"loss": loss.item(), "PSNR": psnr(output.detach(), images).mean().item()}

    loop.run({"decoder": decoder, "average": average, "optimizer": optimizer, "decay": decay}, step)
    decoder.load_state_dict(average.state_dict())
    return model.eval().to(memory_format=torch.contiguous_format)


def draw_noise(latents: torch.Tensor) -> torch.Tensor:
    """Draw noise for latents [B, C, h, w], of a std of its own for each picture."""
    return torch.randn_like(latents) * (DECODER_NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device))


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return PSNR in dB [B] of pictures [B, 3, H, W] in −1..1."""
    return -10 * ((output - target) / 2).square().mean((1, 2, 3)).log10()


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
        output = decode(model, encode(model, target)).clamp(-1, 1)
        decibels.append(psnr(output, target).cpu())
        off = (output - target) / 2
        across, down = off.diff(dim=-1).abs().mean((1, 2, 3)), off.diff(dim=-2).abs().mean((1, 2, 3))
        edges.append((127.5 * (across + down)).cpu())
    return {"psnr_db": torch.cat(decibels).mean().item(), "edge_error": torch.cat(edges).mean().item()}


def load_autoencoder(folder: Path) -> AutoencoderDC:
    """Load for inference."""
    return AutoencoderDC.from_pretrained(folder).eval()
