"""Two small image classifiers that share neither architecture, seed nor data.

- the evaluation classifier (ResNet): the 45 animals, drawings of all five styles; nothing is trained
  against it;
- the judge (ConvNeXt V2): every subject and "other", drawings of the generator's four styles; made to serve
  as a reward, so it is trained with smoothed labels and on damaged, blank and meaningless pictures.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as fn
from diffusers import AutoencoderTiny
from PIL import Image
from transformers import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from examples.emoji_lcm.data import SIZE, to_model_range, to_uint8
from examples.emoji_lcm.paths import replace_folder
from examples.emoji_lcm.precision import mixed_precision
from examples.emoji_lcm.subjects import ANIMALS, SUBJECTS
from examples.emoji_lcm.training import Log, cosine

OTHER = "other"

Map = Callable[[torch.Tensor], torch.Tensor]


def _labels(names: tuple[str, ...]) -> dict[str, dict[int, str] | dict[str, int]]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def new_evaluation_classifier() -> ResNetForImageClassification:
    """Build the untrained evaluation classifier, 0.8 M parameters."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[40, 64, 112, 176],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            **_labels(ANIMALS),
        )
    )


def new_judge(size: int = SIZE) -> ConvNextV2ForImageClassification:
    """Build the untrained judge of pictures of `size` pixels a side, 0.7 M parameters."""
    return ConvNextV2ForImageClassification(
        ConvNextV2Config(
            num_stages=3,
            hidden_sizes=[40, 80, 160],
            depths=[2, 2, 2],
            patch_size=4,
            image_size=size,
            drop_path_rate=0.05,
            **_labels((*SUBJECTS, OTHER)),
        )
    )


def reconstructions(vae: AutoencoderTiny, images: torch.Tensor, seed: int) -> torch.Tensor:
    """Pass uint8 pictures [N, 64, 64, 3] through the autoencoder, noise of std 0–0.3 on the latents."""
    return through_latents(
        lambda x: vae.encode(x.to(vae.device)).latents, lambda latents: vae.decode(latents).sample, images, seed
    )


@torch.no_grad()
def through_latents(encode: Map, decode: Map, images: torch.Tensor, seed: int, batch: int = 128) -> torch.Tensor:
    """Encode uint8 pictures [N, H, W, 3] to latents of about N(0, 1), add noise of std 0–0.3, and decode them.

    `encode` and `decode` map batches on one device: pictures in −1..1 [B, 3, H, W] to latents [B, C, h, w], and back.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for chunk in torch.split(images, batch):
        latents = encode(to_model_range(chunk))
        strength = 0.3 * torch.rand(len(chunk), 1, 1, 1, generator=generator)
        noise = (strength * torch.randn(latents.shape, generator=generator)).to(latents.device)
        parts.append(to_uint8(decode(latents + noise)).cpu())
    return torch.cat(parts)


def jpeg(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return uint8 pictures [N, H, W, 3] after JPEG at quality 30–95."""
    done = []
    for image in images.numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(30, 96)))
        done.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(done))


def _uniform(count: int, low: float, high: float, like: torch.Tensor) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, device=like.device)


def degrade(x: torch.Tensor) -> torch.Tensor:
    """Blur, contrast, brightness and noise of random strength on pictures [B, 3, H, W] in −1..1."""
    count = len(x)
    for _ in range(2):
        blurred = fn.avg_pool2d(fn.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.lerp(x, blurred, _uniform(count, -0.2, 1, x).clamp_min(0))
    x = x * _uniform(count, 0.75, 1.1, x) + _uniform(count, -0.12, 0.12, x)
    return (x + _uniform(count, -0.05, 0.2, x).clamp_min(0) * torch.randn_like(x)).clamp(-1, 1)


def erase(x: torch.Tensor) -> torch.Tensor:
    """Paint over a rectangle in half of the pictures, up to 40 % of each side, in the corner's or any colour."""
    x = x.clone()
    size = x.shape[-1]
    for i in torch.nonzero(torch.rand(len(x)) < 0.5).flatten().tolist():
        height, width = torch.randint(6, int(0.4 * size) + 1, (2,)).tolist()
        top, left = int(torch.randint(size - height, ())), int(torch.randint(size - width, ()))
        colour = x[i, :, 0, 0].clone() if torch.rand(()) < 0.5 else 2 * torch.rand(3, device=x.device) - 1
        x[i, :, top : top + height, left : left + width] = colour[:, None, None]
    return x


def meaningless(pictures: torch.Tensor) -> torch.Tensor:
    """Make square pictures of nothing [B, 3, H, H], by turns plain, noise, blobs, shuffled tiles, drowned in blur."""
    made = []
    size = pictures.shape[-1]
    for i, picture in enumerate(pictures):
        kind = i % 5
        plain = (2 * torch.rand(3, 1, 1, device=picture.device) - 1).expand_as(picture)
        if kind == 0:
            white = torch.rand(()) < 0.3
            made.append(torch.ones_like(picture) if white else plain)
        elif kind == 1:
            made.append(plain * 0.5 + torch.randn_like(picture) * torch.rand((), device=picture.device))
        elif kind == 2:
            coarse = torch.randn(1, 3, *([int(torch.randint(2, 9, ()))] * 2), device=picture.device)
            made.append(plain * 0.5 + fn.interpolate(coarse, size, mode="bilinear")[0] * 0.6)
        elif kind == 3:
            tile = 8 * int(torch.randint(1, 3, ()))
            tiles = picture.unfold(1, tile, tile).unfold(2, tile, tile).flatten(1, 2)
            tiles = tiles[:, torch.randperm(tiles.shape[1])].unflatten(1, (size // tile, size // tile))
            made.append(tiles.permute(0, 1, 3, 2, 4).reshape(picture.shape))
        else:
            made.append(fn.interpolate(fn.avg_pool2d(picture[None], 16), size, mode="bilinear")[0])
    return torch.stack(made).clamp(-1, 1)


def train_classifier(
    model: PreTrainedModel,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    log: Log,
    smoothing: float = 0.0,
    other: int | None = None,
) -> PreTrainedModel:
    """Train on uint8 images [N, H, H, 3] and labels [N].

    `other`, the index of that class, turns on the judge's hardening: erased parts, and a tenth of the batch
    meaningless pictures.
    """
    torch.manual_seed(seed)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, 100, 0.01))
    started, right = time.monotonic(), 0.0
    for step in range(steps):
        pick = torch.randint(len(images), (batch,))
        x, wanted = to_model_range(images[pick]).to(device), labels[pick].to(device)
        if other is not None:
            x = erase(x)
        x = degrade(x)
        if other is not None:
            count = batch // 10
            x = torch.cat([x[count:], meaningless(x[:count])])
            wanted = torch.cat([wanted[count:], torch.full((count,), other, device=device)])
        with mixed_precision(device):
            logits = model(x).logits
        loss = fn.cross_entropy(logits.float(), wanted, label_smoothing=smoothing)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        right += (logits.argmax(1) == wanted).float().mean().item()
        if step % 200 == 199 or step == steps - 1:
            log(
                f"{model.config.model_type} {step + 1} loss {loss.item():.3f} "
                f"right {right / (step % 200 + 1):.3f} {time.monotonic() - started:.0f} s"
            )
            right = 0.0
    return model.eval()


@torch.no_grad()
def classify(model: PreTrainedModel, images: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Log-probabilities [N, labels] for uint8 pictures [N, H, W, 3]."""
    return torch.cat(
        [
            model(to_model_range(x).to(model.device)).logits.float().log_softmax(1).cpu()
            for x in torch.split(images, batch)
        ]
    )


@torch.no_grad()
def features(model: ResNetForImageClassification, images: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Pooled features [N, D], normalised, for uint8 pictures."""
    parts = [
        model.resnet(to_model_range(x).to(model.device)).pooler_output.flatten(1) for x in torch.split(images, batch)
    ]
    return fn.normalize(torch.cat(parts).float().cpu(), dim=1)


def save_classifier(model: PreTrainedModel, folder: Path, size: int = SIZE) -> None:
    """Write a transformers folder in float16 with the size and normalisation in preprocessor_config.json."""

    def write(fresh: Path) -> None:
        model.half().save_pretrained(fresh)
        model.float()
        config = json.loads((fresh / "config.json").read_text(encoding="utf-8"))
        # Loaded without a dtype, transformers would take float16, which is slow on a CPU.
        config["dtype"] = "float32"
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        (fresh / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
        (fresh / "model.safetensors").chmod(0o644)

    replace_folder(folder, write)
