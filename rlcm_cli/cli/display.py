"""Showing what phases yield: bars or a live view in a terminal, plain lines elsewhere, optionally a JSON line."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rlcm_cli.cli.headline import shorten_names
from rlcm_cli.cli.streams import print_data
from rlcm_cli.cli.terminal import open_console
from rlcm_cli.store.metrics import PHASES
from rlcm_cli.wording import count, format_duration, format_size, join_numbers, join_words, to_json_values

if TYPE_CHECKING:
    from rlcm_cli.cli.live import LiveRun
    from rlcm_cli.events import Evaluated, Event
    from rlcm_cli.report.run.progress import RunProgress
    from rlcm_cli.store.metrics import IterationMetrics


ResultT = TypeVar("ResultT")


class Display:
    """Prints the events of a command, and keeps what its closing line needs."""

    def __init__(self, *, quiet: bool, as_json: bool, iterations: int | None = None, silent: bool = False) -> None:
        # With --json stdout is for a program, so people read stderr. Of several processes, only one prints.
        self.console = open_console(stderr=as_json, highlight=False, quiet=silent)
        # A terminal wraps lines between words; a file gets whole lines.
        self.console.soft_wrap = not self.console.is_terminal
        self.quiet = quiet
        self.as_json = as_json and not silent
        self.iterations = iterations
        self.summary: dict[str, Any] = {}
        self._phase: TaskID | None = None
        self._live: LiveRun | None = None
        self._unit = ""
        self._draws = self.console.is_terminal and not (quiet or silent)
        self._started = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self._draws,
        )

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def say_all(self, lines: Iterable[str]) -> None:
        """Print lines, unless quiet."""
        for line in lines:
            self.say(line)

    def follow(self, events: Iterable[Event], progress: RunProgress | None = None) -> None:
        """Print events as they come; in a terminal, with the live view of the run whose progress is given."""
        from rlcm_cli.cli.live import LiveRun

        if progress is None or not self._draws:
            with self._progress:
                for event in events:
                    self._show(event)
            return
        with LiveRun(self.console, progress) as self._live:
            for event in events:
                self._live.take(event)
                self._show(event)
        self._live = None

    def run(self, work: Generator[Event, None, ResultT]) -> ResultT:
        """Print the events of some work as they come, and return its result."""
        results: list[ResultT] = []

        def events() -> Iterator[Event]:
            results.append((yield from work))

        self.follow(events())
        return results[0]

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Print the machine-readable line, if --json was given."""
        if self.as_json:
            print_json({**self.summary, **(result or {})})

    def _show(self, event: Event) -> None:
        from rlcm_cli import events
        from rlcm_cli.cli.live import describe_hacking

        match event:
            case events.PhaseStarted():
                self._start_phase(event)
            case events.Advanced(units):
                if self._phase is not None:
                    self._progress.advance(self._phase, units)
                    speed = self._progress.tasks[self._progress.task_ids.index(self._phase)].speed
                    self._progress.update(self._phase, note=f"{speed:.1f} {self._unit}/s" if speed else "")
            case events.PhaseSkipped(phase, iteration, reason):
                self.say(f"{phase} of iteration {iteration + 1}: nothing to do, {reason}")
                self.summary.setdefault("skipped", []).append(phase)
            case events.Warned(message):
                self._warn(message)
            case events.IterationTrained(number, metrics):
                self._show_iteration(number, metrics)
            case events.Evaluated():
                self._show_evaluation(event)
            case events.HackingFound():
                self._warn(describe_hacking(event))
                self.summary.setdefault("hacking", {})[event.monitored] = event.checkpoint
            case events.FlatFound(checkpoint, evaluations, best):
                self.console.print(
                    f"stopped at iteration {checkpoint}: the held-out reward has not risen for "
                    f"{count(evaluations, 'evaluation')}, since checkpoint {best}; to continue, raise "
                    "--stop-when-flat",
                    markup=False,
                )
                self.summary["flat"] = {"checkpoint": checkpoint, "best": best}
            case events.CostEstimated(seconds, disk_bytes, iterations):
                self.say(
                    f"{count(iterations, 'iteration')} will take about {format_duration(seconds)} and "
                    f"{format_size(disk_bytes)} of disk"
                )
            case events.FilesPruned(rollouts, checkpoints, size):
                self.say(f"removed {describe_pruned(rollouts, checkpoints)}: {format_size(size)}")
                self.summary["pruned"] = {
                    "rollouts": [*rollouts],
                    "checkpoints": [*checkpoints],
                    "bytes": size,
                }
            case events.FileWritten(path, what):
                self.console.print(f"{path}: {what}", markup=False)
                self.summary.setdefault("files", []).append(str(path))

    def _warn(self, message: str) -> None:
        from rlcm_cli.cli.live import warning_line

        if self._live is None:  # which shows it below the view
            self.console.print(warning_line(message))

    def _start_phase(self, event: Any) -> None:
        if self._phase is not None:
            self._progress.remove_task(self._phase)
        self._unit = event.unit
        self._phase = self._progress.add_task(event.phase, total=event.total, note="")

    def _show_iteration(self, number: int, metrics: IterationMetrics) -> None:
        phases = [seconds for phase in PHASES if (seconds := metrics.seconds(phase)) is not None]
        # The wall clock also counts evaluations and loading the model.
        seconds = sum(phases) if len(phases) == len(PHASES) else time.perf_counter() - self._started
        self._started = time.perf_counter()
        if self._live is None:
            self.say(f"{describe_iteration(number, self.iterations, metrics)}  {seconds:.1f} s")
        self.summary.update(checkpoint=number, reward_mean=metrics.reward_mean, reward_std=metrics.reward_std)

    def _show_evaluation(self, event: Evaluated) -> None:
        short = shorten_names(event.components)
        parts = ", ".join(f"{short[name]} {value:.3f}" for name, value in event.components.items())
        if len(event.tasks) > 1:  # their rewards have no common scale
            reward = ", ".join(f"{task} {value:.3f}" for task, value in event.tasks.items())
        else:
            known = event.reward_training is not None
            reward = f"{event.reward_training:.3f} on training prompts" if known else "drawn, without votes"
            if event.reward_held_out is not None:
                reward += f", {event.reward_held_out:.3f} on held-out prompts"
        if event.in_deviations and event.tasks:  # else no image has a reward
            reward += ", in standard deviations"
        self.console.print(
            f"held-out evaluation, checkpoint {event.checkpoint}: {reward}  ({parts})",
            markup=False,
        )
        self.summary.setdefault("evaluations", {})[str(event.checkpoint)] = {
            "reward_training": event.reward_training,
            "reward_held_out": event.reward_held_out,
            **({"in_standard_deviations": True} if event.in_deviations else {}),
            **event.components,
        }


def describe_pruned(rollouts: Sequence[int], checkpoints: Sequence[int]) -> str:
    """Name what was or will be removed of a run."""
    parts = [
        f"{count(len(numbers), noun)} ({join_numbers(numbers)})"
        for noun, numbers in (("rollout", rollouts), ("checkpoint", checkpoints))
        if numbers
    ]
    return join_words(parts)


def describe_iteration(number: int, iterations: int | None, metrics: IterationMetrics) -> str:
    """Return the line of a trained iteration; `iterations`: the total, if it is known."""
    if len(metrics.tasks) > 1:
        line = "  ".join(f"{task} {value:.3f}" for task, value in metrics.tasks.items())
    else:
        # With several rewards, which training may normalise one by one, it is the sum of the raw values.
        name = "reward" if len(metrics.rewards) == 1 else "weighted sum"
        line = f"{name} {metrics.reward_mean:.3f} ± {metrics.reward_std:.3f}"
        line += f"  best {metrics.reward_best:.3f}"
    short = shorten_names([*metrics.rewards, *metrics.monitored])
    parts = ", ".join(f"{short[name]} {value:.3f}" for name, value in metrics.rewards.items())
    if len(metrics.rewards) > 1:
        line += f"  ({parts})"
    if metrics.monitored:
        line += "  monitored: " + ", ".join(f"{short[name]} {value:.3f}" for name, value in metrics.monitored.items())
    kl = f"  kl {metrics.measured['kl_to_base']:.4f}" if "kl_to_base" in metrics.measured else ""
    return f"iteration {number}{f'/{iterations}' if iterations else ''}  {line}{kl}"


def print_json(value: Mapping[str, Any]) -> None:
    """Print a value as one line of JSON on stdout; NaN and infinity, which JSON lacks, as null."""
    print_data(json.dumps(to_json_values(value), ensure_ascii=False, allow_nan=False) + "\n")
