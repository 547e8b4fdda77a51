"""Measure the two pipelines: `python -m examples.emoji_sprint.evaluate` → evaluation.json and pictures in `--work`.

Every figure comes from the diffusers pipelines as anybody would load them, and from the evaluation classifier, which
took no part in the models' training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaPipeline, SanaSprintPipeline
from transformers import AutoModelForImageClassification

from examples.emoji_lcm.classifiers import classify
from examples.emoji_lcm.data import Pictures
from examples.emoji_lcm.evaluate import (
    DEV_SEED,
    REPORT_SEED,
    animal_prompts,
    choose_guidance,
    coloured,
    guidance_effect,
    load,
    recognised,
    sample,
    sheet,
)
from examples.emoji_lcm.subjects import ANIMALS, COLOUR_NAMES, article, is_held_out
from examples.emoji_sprint import paths
from examples.emoji_sprint.autoencoder import load_autoencoder, measure
from examples.emoji_sprint.pipelines import at_own_size

STUDENT, TEACHER = "emoji-sprint", "emoji-sana"
GUIDANCES = (1.0, 2.0, 3.0, 4.5, 6.0, 7.0)
# To be chosen on DEV_SEED, by `guidance_choice` of evaluation.json.
RECOMMENDED_GUIDANCE = 4.5
STEPS = (1, 2, 4)
TEACHER_STEPS = 20


def evaluate(work: Path, device: torch.device, guidance: float = RECOMMENDED_GUIDANCE, samples: int = 24) -> Any:
    """Return all figures, and write the pictures to the work folder."""
    pipe = load(work / STUDENT, SanaSprintPipeline, device)
    student = at_own_size(pipe)
    teacher = at_own_size(load(work / TEACHER, SanaPipeline, device))
    classifier = AutoModelForImageClassification.from_pretrained(work / "classifier").to(device).eval()
    real, fresh = (Pictures.load(work / f"{name}.safetensors") for name in ("real", "fresh"))
    prompts, labels = animal_prompts(samples)
    few_prompts, few_labels = animal_prompts(max(1, samples // 3))
    animals = real.subject < len(ANIMALS)
    rows: dict[str, Any] = {"real pictures, fresh augmentations": (real.images[animals], real.subject[animals])}
    for steps in STEPS:
        drawn = sample(student, prompts, REPORT_SEED, steps, guidance)
        rows[f"student, {steps} step{'s' * (steps > 1)}"] = (drawn, labels)
    drawn = sample(teacher, few_prompts, REPORT_SEED, TEACHER_STEPS, guidance)
    rows[f"teacher, {TEACHER_STEPS} Euler steps"] = (drawn, few_labels)
    figures: dict[str, Any] = {
        "guidance_scale": guidance,
        "samples_an_animal": samples,
        "seeds": {"development": DEV_SEED, "report": REPORT_SEED},
        "autoencoder": measure(load_autoencoder(work / "decoder").to(device), fresh),
        "recognised": {name: recognised(classifier, *row) for name, row in rows.items()},
        "least_recognised": {name: _least(classifier, *row) for name, row in rows.items()},
        "guidance_choice": choose_guidance(student, classifier, max(1, samples // 4), GUIDANCES),
        "coloured": {
            "pairs kept out of training": coloured(
                student, classifier, REPORT_SEED, guidance, max(1, samples // 2), held_out=True
            ),
            "pairs in training": coloured(
                student, classifier, REPORT_SEED, guidance, max(1, samples // 4), held_out=False
            ),
        },
        "guidance": guidance_effect(student, teacher, REPORT_SEED, min(45, 2 * samples), GUIDANCES),
        "speed": speed(pipe, guidance),
    }
    pictures(work, student, teacher, real, guidance)
    return figures


def _least(classifier: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of the animal that is recognised least."""
    hits = (classify(classifier, images).argmax(1) == labels).float()
    return min(hits[labels == label].mean().item() for label in labels.unique())


def speed(pipe: Any, guidance: float, batch: int = 32, repeats: int = 3) -> dict[str, float]:
    """Milliseconds an image, transformer and decoder alone, four steps, float32; then of the whole pipeline call.

    The best of several runs: on a shared machine the others tell of its load.
    """
    config, device = pipe.transformer.config, pipe.device
    x = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, device=device)
    # "a cat on blue" and <bos>
    prompt = torch.randn(batch, 5, config.caption_channels, device=device)
    time_and_guidance = {
        "timestep": torch.full((batch,), 0.5, device=device),
        "guidance": torch.full((batch,), guidance * config.guidance_embeds_scale, device=device),
    }
    bare, whole = [], []
    with torch.no_grad():
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(4):
                pipe.transformer(x, prompt, **time_and_guidance)
            pipe.vae.decode(x)
            bare.append((time.perf_counter() - started) / batch * 1000)
            started = time.perf_counter()
            sample(at_own_size(pipe), ["a cat"] * batch, 0, 4, guidance)
            whole.append((time.perf_counter() - started) / batch * 1000)
    return {
        "threads": torch.get_num_threads(),
        "transformer_and_decoder_ms": min(bare),
        "whole_pipeline_ms": min(whole),
    }


def pictures(work: Path, student: Any, teacher: Any, real: Pictures, guidance: float) -> None:
    """contact_sheet, steps, styles, colours and guidance as PNG files."""
    one_each = [f"{article(a)} {a}" for a in ANIMALS]
    sheet(sample(student, one_each, REPORT_SEED, 4, guidance), 9, work / "contact_sheet.png")
    sheet(sample(student, one_each, REPORT_SEED, 2, guidance), 9, work / "contact_sheet_2_steps.png")

    few = one_each[::3]
    of_few = torch.tensor([int(torch.nonzero(real.subject == s)[0]) for s in range(0, len(ANIMALS), 3)])
    rows = [sample(student, few, REPORT_SEED, steps, guidance) for steps in STEPS]
    rows += [sample(teacher, few, REPORT_SEED, TEACHER_STEPS, guidance), real.images[of_few]]
    sheet(torch.cat(rows), len(few), work / "steps.png")

    of_one = [sample(student, [prompt] * 24, REPORT_SEED, 4, guidance) for prompt in ("a cat", "a whale")]
    sheet(torch.cat(of_one), 12, work / "styles.png")

    pairs = [(s, c) for c in range(1, len(COLOUR_NAMES)) for s in range(len(ANIMALS)) if is_held_out(s, c)]
    on_colour = [f"{article(ANIMALS[s])} {ANIMALS[s]} on {COLOUR_NAMES[c]}" for s, c in pairs]
    sheet(sample(student, on_colour, REPORT_SEED, 4, guidance), 12, work / "colours.png")

    both: Sequence[tuple[Any, int]] = ((student, 4), (teacher, TEACHER_STEPS))
    rows = [sample(pipe, few, REPORT_SEED, n, g) for g in GUIDANCES[::2] for pipe, n in both]
    sheet(torch.cat(rows), len(few), work / "guidance.png")


def write(work: Path, figures: dict[str, Any]) -> None:
    """Write evaluation.json."""
    (work / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=paths.WORK)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--guidance", type=float, default=RECOMMENDED_GUIDANCE)
    arguments = parser.parse_args()
    write(arguments.work, evaluate(arguments.work, torch.device(arguments.device), arguments.guidance))


if __name__ == "__main__":
    main()
