"""Write the tables and pictures of README and docs from the stored results.

python -m examples.benchmark.pages

A table stands between `<!-- benchmark: PLAN TABLE KEY=VALUE … -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.benchmark.comparison import cost_table, difference_table, score_table, steps_table, tuning_table
from examples.benchmark.pictures import draw_curves
from examples.benchmark.plan import Cell, read_blocks, read_plan, read_tunings
from examples.benchmark.price import HEADER, price_rows
from examples.benchmark.results import read_result, results_folder

ROOT = Path(__file__).parents[2]
PLANS = Path(__file__).parent
PICTURES = PLANS / "pictures"
BLOCK = re.compile(r"(<!-- benchmark: ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)
COMPARISONS = {"scores": score_table, "costs": cost_table, "differences": difference_table, "steps": steps_table}


def main() -> None:
    """Bring every page and picture up to date."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(PLANS.parent.rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        current = fill(text)
        if current != text:
            page.write_text(current, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: updated")
    PICTURES.mkdir(exist_ok=True)
    plan = PLANS / "methods.toml"
    for task, model in dict.fromkeys((one["task"], one["model"]) for one in reported(plan)):
        file = PICTURES / f"{task}-{model}.png"
        draw_curves(choose(plan, task, model), name_methods(plan), file)
        print(f"{file.relative_to(ROOT)}: drawn")


def fill(text: str) -> str:
    """Return a page with its tables as the results have them now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{make_table(found[2])}\n\n{found[3]}", text)


def make_table(words: str) -> str:
    """Return the table that a mark asks for, in Markdown. Raises `KeyError` for one that there is not."""
    name, kind, *pairs = words.split()
    plan, given = PLANS / f"{name}.toml", dict(pair.split("=") for pair in pairs)
    if kind == "price":
        blocks = read_blocks(plan)
        cells = [cell for block in given["blocks"].split(",") for cell in blocks[int(block)]]
        return lay_out(HEADER, price_rows(find_results(plan, cells), name_methods(plan)))
    if kind == "tuning":
        tunings = [(tuning, tuning.scores(results_folder(plan))) for tuning in read_tunings(plan)]
        return lay_out(*tuning_table(tunings, name_methods(plan)))
    methods = choose(plan, given["task"], given["model"])
    return lay_out(*COMPARISONS[kind](methods, name_methods(plan))) if methods else "No results yet."


def find_results(plan: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Read the results that there are of runs of a plan."""
    files = [results_folder(plan) / f"{cell.name}.json" for cell in cells]
    return [read_result(file) for file in files if file.exists()]


def reported(plan: Path) -> list[dict[str, Any]]:
    """Read the results that are reported, in the order of the plan."""
    return find_results(plan, read_plan(plan))


def choose(plan: Path, task: str, model: str) -> dict[str, list[dict[str, Any]]]:
    """Return the reported results of a task and model, by method in the order of the plan."""
    found = [one for one in reported(plan) if (one["task"], one["model"]) == (task, model)]
    return {
        name: own
        for name in name_methods(plan)
        if (own := sorted((one for one in found if one["method"] == name), key=lambda one: one["seed"]))
    }


def name_methods(plan: Path) -> dict[str, str]:
    """Return what to call each method of a plan."""
    methods = tomllib.loads(plan.read_text(encoding="utf-8"))["methods"]
    return {name: about.get("about", name) for name, about in methods.items()}


def lay_out(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    main()
