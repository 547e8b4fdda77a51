"""Draw the pictures of the front page: images of a run before and after, under their prompts and JPEG sizes.

python -m examples.front_page.draw runs/sprint/compression-401
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from examples.benchmark.classifier import recognise
from rlcm_cli.pictures.contact_sheet import write_png
from rlcm_cli.pictures.labelled_sheet import Block, arrange_blocks
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.store.evaluations import Evaluation, read_evaluation
from rlcm_cli.store.layout import RunLayout

SHOWN = ("cat", "chicken", "tiger", "cow", "wolf", "raccoon")
"""Chosen by hand, one of them for what it loses; `all.png` has every prompt."""
A_ROW = 9


def find_first(evaluation: Evaluation) -> dict[str, int]:
    """Return the row of the first image of each prompt, in the evaluation's own order."""
    rows: dict[str, int] = {}
    for row, prompt in enumerate(evaluation.prompts):
        rows.setdefault(prompt, row)
    return rows


def lay_out(before: Evaluation, after: Evaluation, rows: list[int]) -> Block:
    """Put the images before above those after, each column under its prompt and both sizes."""
    columns = []
    for row in rows:
        first, last = (jpeg_kilobytes(torch.from_numpy(evaluation.images[row])) for evaluation in (before, after))
        columns.append(f"{before.prompts[row]}\n{first:.1f} → {last:.1f} kB")
    images = [[evaluation.images[row] for row in rows] for evaluation in (before, after)]
    return Block("", ["before", "after"], columns, images)


def summarise(evaluation: Evaluation) -> str:
    """Describe an evaluation: mean JPEG size, and the share of images that an independent classifier recognises."""
    count = len(evaluation.images)
    size = sum(map(jpeg_kilobytes, torch.from_numpy(evaluation.images))) / count
    share = recognise(torch.from_numpy(evaluation.images), evaluation.prompts).float().mean().item()
    return f"{count} images, {size:.2f} kB, {share:.1%} recognised"


def main() -> None:
    """Draw both pictures and print the figures of their captions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the pictures")
    arguments = parser.parse_args()
    layout = RunLayout(arguments.run)
    before, after = (read_evaluation(layout, layout.evaluations()[end]) for end in (0, -1))
    first = find_first(before)
    chosen, every = [first[prompt] for prompt in SHOWN if prompt in first], list(first.values())
    write_png(arguments.out / "before_after.png", arrange_blocks([lay_out(before, after, chosen or every[:6])]))
    blocks = [lay_out(before, after, every[start : start + A_ROW]) for start in range(0, len(every), A_ROW)]
    write_png(arguments.out / "all.png", arrange_blocks(blocks))
    print(f"before: {summarise(before)}\nafter: {summarise(after)}")


if __name__ == "__main__":
    main()
