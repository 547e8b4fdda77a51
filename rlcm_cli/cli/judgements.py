"""Showing what rewards say of images that were drawn in several ways: a table, and plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rlcm_cli.cli.headline import shorten_names
from rlcm_cli.wording import count

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
    others = list(dict.fromkeys(found.against for found in judgements if found.against is not None))
    columns = ["reward", heading, "mean"]
    if others:
        only = f"{heading} {others[0]}" if others[0].isdecimal() else others[0]
        columns += [f"wins against {only}"] if len(others) == 1 else ["against", "wins"]
        columns += ["difference"]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in columns:
        left = name in ("reward", heading, "against")
        table.add_column(Text(name), overflow="fold", justify="left" if left else "right")
    short, last = shorten_names(found.reward for found in judgements), None
    for found in judgements:
        cells = [short[found.reward] if found.reward != last else "", found.way, format_plain(found.estimate)]
        if others:
            cells += [found.against or NOTHING] * (len(others) > 1)
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
    prompts = count_range((found.estimate.prompts for found in judgements), "prompt")
    images = count_range((found.images for found in judgements), "image")
    text = f"mean ± standard error over {prompts} ({images})"
    if any(found.against is not None for found in judgements):
        text += "; wins, with a 95 % interval, and differences are of images with the same prompt and seed"
    return text


def count_range(numbers: Iterable[int], noun: str) -> str:
    """Write the smallest and the largest of some numbers with their noun, once where they are equal."""
    least, most = min(found := list(numbers)), max(found)
    return count(most, noun) if least == most else f"{least:,} to {count(most, noun)}"


def describe_wins(wins: WinRate) -> str:
    """Return a win rate with its interval."""
    low, high = wins.interval
    return f"{100 * wins.share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def format_plain(found: Estimate) -> str:
    """Return mean ± standard error, with ordinary spaces."""
    from rlcm_cli.report.run.summary import format_estimate

    return format_estimate(found).replace("\u00a0", " ")
