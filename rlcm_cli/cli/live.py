"""The live view of a run, which `loop` shows for the run it makes and `watch` for any run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlcm_cli.cli.headline import shorten_names
from rlcm_cli.report.run.progress import (
    PhaseProgress,
    RunProgress,
    read_progress,
    seconds_an_iteration,
    seconds_left,
    seconds_still,
)
from rlcm_cli.store.metrics import PHASES, IterationMetrics
from rlcm_cli.wording import format_duration

if TYPE_CHECKING:
    from rlcm_cli.config import Config
    from rlcm_cli.events import Event, HackingFound
    from rlcm_cli.store.layout import RunLayout

WIDEST = 100
"""Columns; wider lines are harder to read."""
NARROW = 70
"""Columns below which names are shortened."""
WARNINGS = 3
"""Newest warnings to show below the view; older ones are above it."""
REFRESHES = 2
"""Per second."""
EVALUATIONS = 8
"""Number of newest evaluations to name."""
NOTHING = "–"
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "._-~=+*#"


def follow_event(progress: RunProgress, event: Event) -> RunProgress:
    """Return the progress of a run after an event of its phases; warnings are kept, newest last."""
    from rlcm_cli import events

    match event:
        case events.PhaseStarted(phase, _, total, unit):
            return replace(progress, phase=PhaseProgress(phase, 0, total, unit), idle=False)
        case events.Advanced(count) if progress.phase is not None:
            return replace(progress, phase=replace(progress.phase, done=(progress.phase.done or 0) + count))
        case events.IterationTrained(number, metrics):
            return replace(progress, rows=(*progress.rows[: number - 1], metrics), changed=None)
        case events.Evaluated():
            return replace(progress, evaluated=tuple(sorted({*progress.evaluated, event.checkpoint})))
        case events.Warned(message):
            return replace(progress, warnings=(*progress.warnings, message))
        case events.HackingFound():
            return replace(progress, warnings=(*progress.warnings, describe_hacking(event)))
    return progress


def describe_hacking(event: HackingFound) -> str:
    """Return the line that reports reward hacking."""
    end = "; stopped here; to continue, use --on-hacking warn" if event.stops else ""
    return f"hacking, at iteration {event.checkpoint}: {event.message}{end}"


def look_at(layout: RunLayout, config: Config, named: str, before: RunProgress | None = None) -> RunProgress:
    """Read the progress of a run, which may be about to start.

    `named`: as the user knows it. `before`: an earlier reading. Raises `StoreError` for a damaged file.
    """
    title = f"{named}  {config.task}, {config.model.name}, seed {config.seed}"
    return read_progress(layout, config, title, before)


@dataclass(frozen=True)
class RunView:
    """Shows the progress of a run in the available columns, in the terminal's own colours or in none.

    Which lines there are depends on the run's settings and not on its progress, so that no line jumps.
    """

    progress: RunProgress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A console that leaves wrapping to the terminal would cut the lines of a live display.
        options = options.update(width=min(options.max_width, WIDEST), height=None, no_wrap=False, overflow="fold")
        progress = self.progress
        above = [Text(progress.title, "bold", no_wrap=True, overflow="ellipsis"), _bars(progress)]
        below = [_facts(progress), *map(warning_line, progress.warnings)]
        curves = list(_series(progress))
        if console.is_terminal:  # what does not fit would be cut at the bottom, warnings first
            others = sum(len(console.render_lines(part, options)) for part in [*above, *below])
            curves = curves[: max(1, console.height - others - 2)]
        for part in (*above, _curves(progress, curves, options), *below):
            yield from console.render(part, options)


class LiveRun:
    """Keeps the view of a run at the bottom of a terminal; its last state stays there when the block ends."""

    def __init__(self, console: Console, progress: RunProgress) -> None:
        self.progress = progress
        self._live = Live(
            console=console,
            get_renderable=lambda: RunView(self.progress),
            refresh_per_second=REFRESHES,
            vertical_overflow="crop",
        )

    def __enter__(self) -> LiveRun:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def take(self, event: Event) -> None:
        """Show an event; a warning that newer ones push out is printed above the view."""
        progress = follow_event(self.progress, event)
        for message in progress.warnings[:-WARNINGS]:
            self._live.console.print(warning_line(message))
        self.progress = replace(progress, warnings=progress.warnings[-WARNINGS:])


def warning_line(message: str) -> Text:
    """Return a warning as a line: only its first word is coloured, since yellow on white is hard to read."""
    if message.startswith("hacking"):
        return Text.assemble(("hacking", "bold red"), message.removeprefix("hacking"))
    return Text.assemble(("warning", "bold yellow"), f": {message}")


def draw_sparkline(values: Sequence[float | None], planned: int, width: int, *, ascii_only: bool = False) -> str:
    """Draw the values of the iterations so far as blocks, on a line as long as all planned iterations.

    The line grows to the right as the run proceeds. A block is the mean of the iterations that share it; the lowest
    block is the smallest value so far, the highest the largest.
    """
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    width = min(width, planned)
    cells: list[list[float]] = [[] for _ in range(width)]
    for index, value in enumerate(values):
        if value is not None and value == value:  # neither unknown nor NaN
            cells[index * width // planned].append(value)
    means = [sum(cell) / len(cell) if cell else None for cell in cells]
    known = [mean for mean in means if mean is not None]
    if not known:
        return " " * width
    low, high = min(known), max(known)
    top = len(blocks) - 1
    return "".join(
        " " if mean is None else blocks[top // 2 if high == low else round((mean - low) / (high - low) * top)]
        for mean in means
    )


@dataclass(frozen=True)
class _Sparkline:
    """A sparkline as wide as its column."""

    values: Sequence[float | None]
    planned: int
    ascii_only: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = draw_sparkline(self.values, self.planned, options.max_width, ascii_only=self.ascii_only)
        yield Text(drawn, "cyan", no_wrap=True)


def _bars(progress: RunProgress) -> RenderableType:
    phase = progress.phase or PhaseProgress("")
    left = seconds_left(progress, time.time())
    if progress.finished or progress.done >= progress.planned:
        note = "done" if progress.done >= progress.planned else "ended early"
    elif seconds_still(progress, time.time()) is not None:
        note = "stopped?"
    else:
        note = "" if left is None else f"about {format_duration(left)} left"
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=10, no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True)
    table.add_column(width=18, no_wrap=True, justify="right")
    table.add_row(
        "iteration",
        _bar(progress.done, progress.planned),
        f"{progress.done} of {progress.planned}",
        note,
    )
    counted = f"{phase.done} of {phase.total}" if phase.total else ""
    table.add_row(phase.name, _bar(phase.done, phase.total), counted, phase.unit if counted else "")
    return table


def _bar(done: int | None, total: int | None) -> RenderableType:
    if not total:
        return Text("")
    return ProgressBar(
        total=total, completed=done or 0, style="bright_black", complete_style="cyan", finished_style="cyan"
    )


def _curves(
    progress: RunProgress, curves: Sequence[tuple[str, list[float | None]]], options: ConsoleOptions
) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(max_width=14 if options.max_width < NARROW else 22, no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", width=8, no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(justify="right", width=8, no_wrap=True)
    table.add_row("", Text("first", "dim"), "", Text("last", "dim"))
    for label, values in curves:
        known = [value for value in values if value is not None]
        first, last = (format_value(known[0]), format_value(known[-1])) if known else (NOTHING, NOTHING)
        line = _Sparkline(values, progress.planned, options.ascii_only)
        table.add_row(Text(label), first, line, Text(last, "bold"))
    return table


def _series(progress: RunProgress) -> Iterator[tuple[str, list[float | None]]]:
    if progress.tasks:
        yield from ((task, progress.series(_task_mean(task))) for task in progress.tasks)
    else:
        yield "reward" if len(progress.rewards) == 1 else "weighted sum", progress.series(lambda row: row.reward_mean)
        yield "  best", progress.series(lambda row: row.reward_best)
        yield "  spread", progress.series(lambda row: row.reward_std)
    short = shorten_names([*progress.rewards, *progress.monitored])
    if len(progress.rewards) > 1:
        yield from ((f"  {short[name]}", progress.series(_mean_of(name))) for name in progress.rewards)
    yield from ((f"monitored {short[name]}", progress.series(_mean_of(name))) for name in progress.monitored)


def _task_mean(task: str) -> Callable[[IterationMetrics], float | None]:
    return lambda row: row.tasks.get(task)


def _mean_of(reward: str) -> Callable[[IterationMetrics], float | None]:
    return lambda row: row.scored.get(reward)


def _facts(progress: RunProgress) -> RenderableType:
    row = progress.rows[-1] if progress.rows else None
    each = seconds_an_iteration(progress.rows)
    times = [f"{phase} {seconds:.1f}" for phase in PHASES if row and (seconds := row.seconds(phase)) is not None]
    times += [] if each is None else [f"in all {each:.1f}"]
    update = [
        f"{label} {row.numbers[name]:.2g}"
        for name, label in (
            ("grad_norm", "gradient"),
            ("clip_fraction", "clipped"),
            ("kl_to_base", "KL"),
            ("learning_rate", "rate"),
        )
        if row and name in row.numbers
    ]
    drawn = ", ".join(map(str, progress.evaluated[-EVALUATIONS:]))
    table = Table.grid(padding=(0, 1))
    table.add_column(width=10, no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("seconds", ", ".join(times) or NOTHING)
    table.add_row("update", ", ".join(update) or NOTHING)
    table.add_row("evaluated", f"checkpoints {drawn}" if drawn else NOTHING)
    if progress.changed is not None:
        table.add_row("changed", f"{format_duration(max(0.0, time.time() - progress.changed))} ago")
    still = seconds_still(progress, time.time())
    if still is not None:
        usual = "" if each is None else f" (an iteration takes {format_duration(each)})"
        table.add_row("stopped?", f"no change for {format_duration(still)}{usual}")
    return table


def format_value(value: float) -> str:
    """Return a reward in at most 8 columns."""
    text = f"{value:.3f}"
    return text if len(text) <= 8 else f"{value:.2g}"
