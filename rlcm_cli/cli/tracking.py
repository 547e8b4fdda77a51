"""Copying a run to experiment trackers while it works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlcm_cli.events import Event
    from rlcm_cli.report.trackers import RunTrackers
    from rlcm_cli.runs.run import Run


def open_trackers(run: Run) -> RunTrackers | None:
    """Make the trackers that a run's settings name; None: there are none. Raises `ConfigError` for one not installed.

    Nothing is written until there is something to log.
    """
    names = run.config.runtime.log_with
    if not names:
        return None
    from rlcm_cli.report.trackers import RunTrackers, choose_trackers

    return RunTrackers(run, choose_trackers(names))


def track(events: Iterable[Event], trackers: RunTrackers | None) -> Iterator[Event]:
    """Yield a run's events; the trackers get each iteration and evaluation, and their failures become warnings."""
    from rlcm_cli.events import Evaluated, IterationTrained, Warned

    if trackers is None:
        yield from events
        return
    try:
        for event in events:
            yield event
            if isinstance(event, IterationTrained | Evaluated):
                yield from map(Warned, trackers.catch_up())
    finally:
        trackers.close()
