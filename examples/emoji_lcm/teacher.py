"""The diffusion teacher: ε-prediction on the latents, text encoder trained along with the U-Net."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from examples.emoji_lcm.paths import replace_folder
from examples.emoji_lcm.pipelines import new_unet
from examples.emoji_lcm.precision import mixed_precision
from examples.emoji_lcm.text import encode, new_text_encoder, tokenize
from examples.emoji_lcm.training import Log, alphas_cumprod, caption_table, cosine, per_sample, update_average

DROPPED_CAPTIONS = 0.1
MIN_SNR_GAMMA = 5.0
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Teacher:
    """The U-Net and the text encoder that was trained with it."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel

    def save(self, folder: Path) -> None:
        """Write unet/ and text_encoder/."""

        def write(fresh: Path) -> None:
            self.unet.save_pretrained(fresh / "unet")
            self.text_encoder.save_pretrained(fresh / "text_encoder")

        replace_folder(folder, write)

    @staticmethod
    def load(folder: Path) -> Teacher:
        """Read what `save` wrote."""
        return Teacher(
            UNet2DConditionModel.from_pretrained(folder / "unet"),
            CLIPTextModel.from_pretrained(folder / "text_encoder"),
        )


def train_teacher(
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
) -> Teacher:
    """Train on latents [N, C, h, w] with subject and colour indices [N]; returns the averaged weights.

    The loss is weighted by min(SNR, 5) / SNR (Hang et al., arXiv 2303.09556, for ε-prediction).
    """
    torch.manual_seed(seed)
    unet = new_unet(guidance_embedding=False).to(device, memory_format=torch.channels_last).train()
    encoder = new_text_encoder(tokenizer).to(device).train()
    average = Teacher(copy.deepcopy(unet), copy.deepcopy(encoder))
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, 200, 0.02))
    ids = caption_table(tokenizer)
    nothing = tokenize(tokenizer, [""])[0]
    bars = alphas_cumprod(device)
    weights = (bars / (1 - bars)).clamp(max=MIN_SNR_GAMMA) / (bars / (1 - bars))
    started, total = time.monotonic(), 0.0
    for step in range(steps):
        pick = torch.randint(len(latents), (batch,))
        tokens = ids[subject[pick], colour[pick], torch.randint(ids.shape[2], (batch,))]
        tokens[torch.rand(batch) < DROPPED_CAPTIONS] = nothing
        clean = latents[pick].float().to(device)
        noise = torch.randn_like(clean)
        t = torch.randint(len(bars), (batch,), device=device)
        noisy = per_sample(bars[t].sqrt()) * clean + per_sample((1 - bars[t]).sqrt()) * noise
        with mixed_precision(device):
            prompt = encode(encoder, tokens.to(device))
            predicted = unet(noisy.contiguous(memory_format=torch.channels_last), t, prompt).sample
        loss = (weights[t] * (predicted.float() - noise).square().mean((1, 2, 3))).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay.step()
        ema = min(EMA_DECAY, (1 + step) / (10 + step))
        update_average(average.unet, unet, ema)
        update_average(average.text_encoder, encoder, ema)
        total += loss.item()
        if step % 200 == 199 or step == steps - 1:
            log(f"teacher {step + 1} loss {total / (step % 200 + 1):.4f} {time.monotonic() - started:.0f} s")
            total = 0.0
    return Teacher(average.unet.eval().to(memory_format=torch.contiguous_format), average.text_encoder.eval())
