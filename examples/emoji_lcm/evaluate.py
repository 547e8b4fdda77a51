"""Measure the shipped folders: `python -m examples.emoji_lcm.evaluate` → evaluation.json and pictures.

Every figure comes from the diffusers pipelines as anybody would load them, and from the evaluation classifier, which
took no part in the model's training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline
from PIL import Image
from transformers import AutoModelForImageClassification

from examples.emoji_lcm import paths
from examples.emoji_lcm.classifiers import OTHER, classify, features
from examples.emoji_lcm.data import Pictures, load_drawings, make_pictures
from examples.emoji_lcm.subjects import (
    ALL_STYLES,
    ANIMALS,
    COLOUR_NAMES,
    COLOURS,
    SUBJECTS,
    UNSEEN_STYLE,
    article,
    is_held_out,
)

# diffusers ships no types.
Pipeline: TypeAlias = Any
BATCH = 64
DEV_SEED, REPORT_SEED = 1_000_000, 2_000_000
# Chosen on DEV_SEED with choose_guidance.
RECOMMENDED_GUIDANCE = 4.0
GUIDANCES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.5)


def load(folder: Path, kind: type[Pipeline], device: torch.device) -> Pipeline:
    """Load a pipeline folder in float32, without progress bars."""
    pipe = kind.from_pretrained(folder).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    pipe: Pipeline,
    prompts: Sequence[str],
    seed: int,
    steps: int,
    guidance: float,
    *,
    latents_only: bool = False,
) -> torch.Tensor:
    """One picture a prompt, uint8 [N, H, W, 3]; sample i has its own CPU generator seeded with seed + i."""
    parts = []
    for start in range(0, len(prompts), BATCH):
        chunk = list(prompts[start : start + BATCH])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        out = pipe(
            prompt=chunk,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="latent" if latents_only else "np",
        ).images
        parts.append(out.cpu() if latents_only else (torch.from_numpy(out) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def animal_prompts(count: int) -> tuple[list[str], torch.Tensor]:
    """`count` prompts an animal, half "cat" and half "a cat", and the label of each."""
    prompts = [a if k % 2 else f"{article(a)} {a}" for a in ANIMALS for k in range(count)]
    return prompts, torch.arange(len(ANIMALS)).repeat_interleave(count)


def recognised(classifier: Any, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Top-1 share, and the three worst animals."""
    hits = (classify(classifier, images).argmax(1) == labels).float()
    each = {a: hits[labels == i].mean().item() for i, a in enumerate(ANIMALS) if (labels == i).any()}
    worst = sorted(each, key=lambda a: each[a])[:3]
    return {
        "share": hits.mean().item(),
        "images": len(images),
        "worst": {a: each[a] for a in worst},
    }


def border_colour(images: torch.Tensor) -> torch.Tensor:
    """Index in COLOUR_NAMES nearest (RGB) to the median of the outermost two pixels, for uint8 [N, H, W, 3]."""
    ring = torch.ones(images.shape[1:3], dtype=torch.bool)
    ring[2:-2, 2:-2] = False
    middle = images[:, ring].float().median(1).values
    return torch.cdist(middle, torch.tensor(list(COLOURS.values())).float()).argmin(1)


def coloured(
    pipe: Pipeline, classifier: Any, seed: int, guidance: float, count: int, *, held_out: bool
) -> dict[str, Any]:
    """Draw "a cat on blue" and the like in 4 steps: share recognised, of the right colour, both."""
    pairs = [
        (s, c)
        for s in range(len(ANIMALS))
        for c in range(1, len(COLOUR_NAMES))
        if is_held_out(s, c) == held_out and (held_out or (s * 3 + c) % 5 == 0)
    ]
    prompts = [f"{article(ANIMALS[s])} {ANIMALS[s]} on {COLOUR_NAMES[c]}" for s, c in pairs for _ in range(count)]
    subject = torch.tensor([s for s, _ in pairs]).repeat_interleave(count)
    wanted = torch.tensor([c for _, c in pairs]).repeat_interleave(count)
    images = sample(pipe, prompts, seed, 4, guidance)
    right_subject = classify(classifier, images).argmax(1) == subject
    right_colour = border_colour(images) == wanted
    return {
        "pairs": len(pairs),
        "images": len(images),
        "recognised": right_subject.float().mean().item(),
        "right_colour": right_colour.float().mean().item(),
        "both": (right_subject & right_colour).float().mean().item(),
        "worst_colours": {
            COLOUR_NAMES[c]: right_colour[wanted == c].float().mean().item() for c in range(1, len(COLOUR_NAMES))
        },
    }


def styles_drawn(
    pipe: Pipeline,
    classifier: Any,
    real: Pictures,
    styles: Sequence[str],
    seed: int,
    guidance: float,
    samples: int = 32,
) -> dict[str, Any]:
    """Which training drawing each of 32 samples of one prompt is nearest to, in the classifier's feature space.

    `styles[i]` is the style of drawing i of `real`.
    """
    per_prompt = {}
    real_features = features(classifier, real.images)
    for name in ("cat", "dog", "bird", "fox", "whale", "turtle"):
        prompt = f"{article(name)} {name}"
        drawn = features(classifier, sample(pipe, [prompt] * samples, seed, 4, guidance))
        own = torch.nonzero(real.subject == SUBJECTS.index(name)).flatten()
        nearest = real.drawing[own[(drawn @ real_features[own].T).argmax(1)]].tolist()
        known = set(real.drawing[own].tolist())
        counts: dict[str, int] = {}
        for drawing in nearest:
            counts[styles[drawing]] = counts.get(styles[drawing], 0) + 1
        per_prompt[prompt] = {"styles": counts, "drawings": len(set(nearest)), "known_drawings": len(known)}
    return per_prompt


def guidance_effect(
    lcm: Pipeline, teacher: Pipeline, seed: int, count: int = 45, guidances: Sequence[float] = GUIDANCES
) -> dict[str, Any]:
    """How the guidance acts on the final latents, from the same starting noise.

    `change`: relative root-mean-square change of the latents against guidance 1. `distance`: relative RMS distance of
    the LCM's one-step latents (row: its guidance) to the teacher's latents after 20 DDIM steps (column: the teacher's
    guidance); an LCM that tracks its teacher has each row's minimum on the diagonal.
    """
    prompts = [f"{article(a)} {a}" for a in ANIMALS[:count]]
    one, four, guided = (
        [sample(pipe, prompts, seed, steps, g, latents_only=True) for g in guidances]
        for pipe, steps in ((lcm, 1), (lcm, 4), (teacher, 20))
    )

    def relative(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).square().mean().sqrt() / b.square().mean().sqrt()).item()

    return {
        "guidances": list(guidances),
        "change_1_step": [relative(x, one[0]) for x in one],
        "change_4_steps": [relative(x, four[0]) for x in four],
        "change_teacher": [relative(x, guided[0]) for x in guided],
        "distance": [[relative(a, b) for b in guided] for a in one],
    }


def speed(lcm: Pipeline, guidance: float, batch: int = 32, repeats: int = 12) -> dict[str, float]:
    """Milliseconds an image, U-Net and decoder alone, four steps, float32, and of the whole pipeline call.

    The best of several runs: on a shared machine the others tell of its load.
    """
    x = torch.randn(batch, lcm.unet.config.in_channels, 8, 8, device=lcm.device)
    prompt = torch.randn(batch, 24, 128, device=lcm.device)
    w = torch.randn(batch, lcm.unet.config.time_cond_proj_dim, device=lcm.device)
    bare, whole = [], []
    with torch.no_grad():
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(4):
                lcm.unet(x, 499, prompt, timestep_cond=w)
            lcm.vae.decode(x)
            bare.append((time.perf_counter() - started) / batch * 1000)
            started = time.perf_counter()
            sample(lcm, ["a cat"] * batch, 0, 4, guidance)
            whole.append((time.perf_counter() - started) / batch * 1000)
    return {
        "threads": torch.get_num_threads(),
        "unet_and_decoder_ms": min(bare),
        "whole_pipeline_ms": min(whole),
    }


def sheet(images: torch.Tensor, columns: int, path: Path) -> None:
    """Write a PNG of 256 colours: uint8 pictures [N, H, W, 3] in rows of `columns`."""
    rows = -(-len(images) // columns)
    padded = torch.full((rows * columns, *images.shape[1:]), 255, dtype=torch.uint8)
    padded[: len(images)] = images
    height, width = images.shape[1:3]
    grid = padded.view(rows, columns, height, width, 3).permute(0, 2, 1, 3, 4)
    picture = Image.fromarray(grid.reshape(rows * height, columns * width, 3).numpy())
    picture.quantize(256).save(path, optimize=True)


def choose_guidance(
    pipe: Pipeline,
    classifier: Any,
    count: int = 6,
    guidances: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
) -> dict[str, dict[str, float]]:
    """Recognised share by guidance and steps on the development seed."""
    prompts, labels = animal_prompts(count)
    return {
        f"{guidance:g}": {
            str(n): recognised(classifier, sample(pipe, prompts, DEV_SEED, n, guidance), labels)["share"]
            for n in (2, 4)
        }
        for guidance in guidances
    }


def evaluate(work: Path, device: torch.device, guidance: float, samples: int = 24) -> dict[str, Any]:
    """All figures of the card; the pictures are written beside the recipe."""
    lcm = load(paths.LCM, LatentConsistencyModelPipeline, device)
    teacher = load(paths.TEACHER, StableDiffusionPipeline, device)
    classifier = AutoModelForImageClassification.from_pretrained(paths.CLASSIFIER).to(device).eval()
    judge = AutoModelForImageClassification.from_pretrained(paths.JUDGE).to(device).eval()
    drawings = load_drawings(ALL_STYLES, work / "npm")
    generator_drawings = [d for d in drawings if d.style != UNSEEN_STYLE.name]
    unseen = [d for d in drawings if d.style == UNSEEN_STYLE.name]
    prompts, labels = animal_prompts(samples)
    figures: dict[str, Any] = {"guidance_scale": guidance, "samples_an_animal": samples, "seed": REPORT_SEED}

    real = make_pictures(generator_drawings, samples, 7_001, held_out_pairs=True, white_share=1.0)
    animals = real.subject < len(ANIMALS)
    rows: dict[str, Any] = {"real pictures, fresh augmentations": (real.images[animals], real.subject[animals])}
    for steps in (1, 2, 4, 8):
        rows[f"LCM, {steps} step{'s' * (steps > 1)}"] = (
            sample(lcm, prompts, REPORT_SEED, steps, guidance),
            labels,
        )
    few_prompts, few_labels = animal_prompts(samples // 3)
    for steps in (20, 50):
        drawn = sample(teacher, few_prompts, REPORT_SEED, steps, guidance)
        rows[f"teacher, {steps} DDIM steps"] = (drawn, few_labels)
    figures["recognised"] = {name: recognised(classifier, *row) for name, row in rows.items()}
    figures["recognised_by_judge"] = {name: recognised(judge, *row) for name, row in rows.items()}
    figures["guidance_choice"] = choose_guidance(lcm, classifier)
    figures["coloured"] = {
        "pairs kept out of training": coloured(lcm, classifier, REPORT_SEED, guidance, 16, held_out=True),
        "pairs in training": coloured(lcm, classifier, REPORT_SEED, guidance, 8, held_out=False),
    }
    figures["styles"] = styles_drawn(
        lcm,
        classifier,
        make_pictures(generator_drawings, 48, 7_002, held_out_pairs=True, white_share=1.0),
        [d.style for d in generator_drawings],
        REPORT_SEED,
        guidance,
    )
    figures["guidance"] = guidance_effect(lcm, teacher, REPORT_SEED)
    figures["speed"] = speed(lcm, guidance)
    figures["judge"] = judge_figures(judge, generator_drawings, unseen)

    pictures(lcm, teacher, real, guidance)
    return figures


def judge_figures(judge: Any, seen: Sequence[Any], unseen: Sequence[Any]) -> dict[str, Any]:
    """Accuracy and calibration on fresh pictures of the four training styles and of the style it never saw."""
    figures: dict[str, Any] = {}
    for name, drawings in (("training styles", seen), ("unseen style (twemoji)", unseen)):
        fresh = make_pictures(drawings, 16, 7_003, held_out_pairs=True)
        log_probs = classify(judge, fresh.images)
        sure, guess = log_probs.exp().max(1)
        right = (guess == fresh.subject).float()
        figures[name] = {
            "top1": right.mean().item(),
            "mean_confidence": sure.mean().item(),
            "calibration_error": calibration_error(sure, right),
        }
    blank = torch.full((8, 64, 64, 3), 255, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (64, 64, 64, 3), generator=generator, dtype=torch.uint8)
    other = judge.config.label2id[OTHER]
    figures["probability of 'other' on white"] = classify(judge, blank)[:, other].exp().mean().item()
    figures["probability of 'other' on noise"] = classify(judge, noise)[:, other].exp().mean().item()
    return figures


def calibration_error(confidence: torch.Tensor, right: torch.Tensor, bins: int = 10) -> float:
    """Expected calibration error with equal-width bins."""
    bin_of = (confidence * bins).long().clamp_max(bins - 1)
    gaps = [
        (bin_of == b).float().mean() * (confidence[bin_of == b].mean() - right[bin_of == b].mean()).abs()
        for b in range(bins)
        if (bin_of == b).any()
    ]
    return torch.stack(gaps).sum().item()


def pictures(lcm: Pipeline, teacher: Pipeline, real: Pictures, guidance: float) -> None:
    """contact_sheet, steps, styles, colours and guidance as PNG files."""
    one_each = [f"{article(a)} {a}" for a in ANIMALS]
    sheet(sample(lcm, one_each, REPORT_SEED, 4, guidance), 9, paths.RECIPE / "contact_sheet.png")

    few = [f"{article(a)} {a}" for a in ANIMALS[::3]]
    of_few = torch.tensor([int(torch.nonzero(real.subject == s)[0]) for s in range(0, len(ANIMALS), 3)])
    rows = [sample(lcm, few, REPORT_SEED, steps, guidance) for steps in (1, 2, 4, 8)]
    rows += [sample(teacher, few, REPORT_SEED, 20, guidance), real.images[of_few]]
    sheet(torch.cat(rows), len(few), paths.RECIPE / "steps.png")

    of_one = [sample(lcm, [prompt] * 32, REPORT_SEED, 4, guidance) for prompt in ("a cat", "a whale")]
    sheet(torch.cat(of_one), 16, paths.RECIPE / "styles.png")

    pairs = [(s, c) for c in range(1, len(COLOUR_NAMES)) for s in range(len(ANIMALS)) if is_held_out(s, c)]
    on_colour = [f"{article(ANIMALS[s])} {ANIMALS[s]} on {COLOUR_NAMES[c]}" for s, c in pairs]
    sheet(sample(lcm, on_colour, REPORT_SEED, 4, guidance), 12, paths.RECIPE / "colours.png")

    rows = [sample(pipe, few, REPORT_SEED, n, g) for g in GUIDANCES for pipe, n in ((lcm, 4), (teacher, 20))]
    sheet(torch.cat(rows), len(few), paths.RECIPE / "guidance.png")


def write(figures: dict[str, Any]) -> None:
    """Write evaluation.json."""
    (paths.RECIPE / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=paths.WORK)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--guidance", type=float, default=None, help="default: the recommended one of the LCM folder")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    figures = evaluate(arguments.work, device, arguments.guidance or RECOMMENDED_GUIDANCE)
    write(figures)


if __name__ == "__main__":
    main()
