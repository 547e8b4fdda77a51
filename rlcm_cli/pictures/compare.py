"""Draw the same prompts and seeds with the last policies of several runs, at several numbers of model calls.

Their base model is drawn, too, where they share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlcm_cli.events import Event, FileWritten
from rlcm_cli.pictures.drawing import Drawing, find_lora, load_drawing_model, plan_drawing
from rlcm_cli.pictures.generate import generate
from rlcm_cli.runs.run import Run, open_run

FEW_STEPS = (1, 2, 4, 8)
MANY_STEPS = (10, 20, 50)
MANY_FROM = 10
"""Model calls in training from which on a run is one of a many-step sampler, such as DDIM."""
BASE = "base model"
PROMPTS = 8


@dataclass(frozen=True)
class SampleRow:
    """One image of each prompt, drawn by one method with one number of model calls."""

    method: str
    drawing: Drawing
    folder: Path
    """Where the images go: `<index>-….png`, and a sheet."""


def plan_samples(runs: Mapping[str, Path], folder: Path) -> list[SampleRow]:
    """Plan the rows of methods, name → run directory, each with its own sampler; image i has seed i.

    Where all have the same base model, its rows come first, as `plan_base` says.

    Few-step policies are drawn with 1, 2, 4 and 8 model calls, those that are trained with 10 or more with 10, 20
    and 50. The prompts are of the first run, those that it has kept out of training first. Raises as `find_lora`.
    """
    prompts = choose_prompts(open_run(next(iter(runs.values()))))
    rows = []
    for number, (method, root) in enumerate(runs.items()):
        adapter = find_lora(str(root), 1.0)
        trained_with = open_run(root).config.sample.steps
        for steps in FEW_STEPS if trained_with < MANY_FROM else MANY_STEPS:
            drawing = plan_drawing(
                prompts, count=1, seed=0, adapter=adapter, model={}, sample={"steps": steps}, sampler={}
            )
            rows.append(SampleRow(method, drawing, folder / f"{number:03d}-{steps:03d}"))
    return [*plan_base(rows, folder), *rows]


def plan_base(rows: Sequence[SampleRow], folder: Path) -> list[SampleRow]:
    """Plan the rows of the base model that rows of methods share, each drawn as theirs but for what was trained.

    Methods that are drawn in the same way share the base's rows. Where they are drawn differently, its label names
    the first method of each way. Runs with other models, or other settings of one, have no rows of it.
    """
    if any(row.drawing.model != rows[0].drawing.model for row in rows):
        return []
    ways: dict[str, list[Drawing]] = {}
    for method, group in itertools.groupby(rows, key=lambda row: row.method):
        drawings = [replace(row.drawing, adapter=None) for row in group]
        if drawings not in ways.values():
            ways[method] = drawings
    return [
        SampleRow(
            BASE if len(ways) == 1 else f"{BASE}, drawn as {method}",
            drawing,
            folder / f"base-{number:03d}-{drawing.sample.steps:03d}",
        )
        for number, (method, drawings) in enumerate(ways.items())
        for drawing in drawings
    ]


def choose_prompts(run: Run) -> list[str]:
    """Choose prompts to show a run by: those kept out of training, then others."""
    held_out = [prompt for prompts in run.prompts.values() for prompt in prompts.held_out]
    training = [prompt for prompts in run.prompts.values() for prompt in prompts.training]
    return list(dict.fromkeys(held_out + training))[:PROMPTS]


def draw_samples(rows: Sequence[SampleRow], device: str) -> Iterator[Event]:
    """Draw the rows; each method's model is loaded once."""
    for _, group in itertools.groupby(rows, key=lambda row: (row.method, row.drawing.adapter)):  # whatever its label
        own = list(group)
        model = load_drawing_model(own[0].drawing, device)
        for row in own:
            for event in generate(row.drawing, model, row.folder):
                if not isinstance(event, FileWritten):  # each row's sheet, which the picture of all replaces
                    yield event
