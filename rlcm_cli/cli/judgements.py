"""Showing what rewards say of images that were drawn in several ways: a table, and plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rlcm_cli.cli.headline import shorten_names

if TYPE_CHECKING:
    from rlcm_cli.cli.display import Display
    from rlcm_cli.core.estimates import Estimate
    from rlcm_cli.core.paired_comparisons import WinRate
    from rlcm_cli.judging.summary import Judgement

NOTHING = "–"
GAP = 3
WIDTH_OF_A_FILE = 10_000
"""Columns; a file has no width, and rich would fold at 80."""


def show_judgements(judgements: Sequence[Judgement], display: Display, heading: str) -> None:
    """Print a table with a row for each reward and way, and what its numbers are; `heading`: what the ways are."""
    from rich.table import Table
    from rich.text import Text

    if not judgements:
        return
    against = next((found.against for found in judgements if found.against is not None), None)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    columns = ["reward", heading, "mean"]
    if against:
        columns += [f"wins against {heading} {against}" if against.isdecimal() else f"wins against {against}"]
        columns += ["difference"]
    for name in columns:
        table.add_column(Text(name), overflow="fold", justify="left" if name in ("reward", heading) else "right")
    short, last = shorten_names(found.reward for found in judgements), None
    for found in judgements:
        cells = [short[found.reward] if found.reward != last else "", found.way, format_plain(found.estimate)]
        if against:
            cells.append(NOTHING if found.wins is None else describe_wins(found.wins))
            cells.append(NOTHING if found.difference is None else format_plain(found.difference))
        table.add_row(*map(Text, cells))
        last = found.reward
    if not display.console.is_terminal:
        display.console.width = WIDTH_OF_A_FILE
    display.console.print(table)
    display.say(explain(judgements))


def explain(judgements: Sequence[Judgement]) -> str:
    """Return what the numbers of a table are."""
    prompts = join_range(found.estimate.prompts for found in judgements)
    images = join_range(found.images for found in judgements)
    text = f"mean ± standard error over {prompts} prompts ({images} images)"
    if any(found.against is not None for found in judgements):
        text += "; wins, with a 95 % interval, and differences are of images with the same prompt and seed"
    return text


def join_range(numbers: Iterable[int]) -> str:
    """Write the smallest and the largest of some numbers, once where they are equal."""
    found = sorted(numbers)
    return " to ".join(f"{number:,}" for number in dict.fromkeys((found[0], found[-1])))


def describe_wins(wins: WinRate) -> str:
    """Return a win rate with its interval."""
    low, high = wins.interval
    return f"{100 * wins.share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def format_plain(found: Estimate) -> str:
    """Return mean ± standard error, with ordinary spaces."""
    from rlcm_cli.report.run.summary import format_estimate

    return format_estimate(found).replace("\u00a0", " ")
