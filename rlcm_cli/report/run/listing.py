"""The runs in a folder: what each is, how far it is, and how much disk it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlcm_cli.config import Config, parse_config
from rlcm_cli.errors import RlcmError
from rlcm_cli.report.run.progress import RunProgress, add_alarms, read_progress, seconds_still
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.locate import is_run
from rlcm_cli.store.run import read_config
from rlcm_cli.wording import one_line

DEEPEST = 4
"""Levels of folders to look for runs in."""


@dataclass(frozen=True)
class ListedRun:
    """A run, as a list shows it."""

    root: Path
    bytes: int
    """Size of its files."""
    config: Config | None = None
    """None: it cannot be read."""
    progress: RunProgress | None = None
    """None: it cannot be read."""
    fault: str = ""
    """Why it cannot be read, in one line."""

    @property
    def changed(self) -> float | None:
        """When a file was last written, in seconds since the epoch; None: not known."""
        return self.progress.changed if self.progress else None


def find_runs(folder: Path) -> list[Path]:
    """List the run directories in a folder, down to `DEEPEST` levels, by their names; a run itself is the only one.

    Hidden folders and those that may not be read are passed over, and so is what lies within a run.
    """
    return list(_walk(folder, DEEPEST, set()))


def list_runs(folder: Path) -> list[ListedRun]:
    """Read the runs in a folder, the one that changed last first, those that cannot be read at the end."""
    return sorted(map(read_listed, find_runs(folder)), key=lambda run: -(run.changed or 0.0))


def read_listed(root: Path) -> ListedRun:
    """Read what a list shows of a run; what is wrong with it becomes its `fault`."""
    layout, size = RunLayout(root), measure_folder(root)
    try:
        config = parse_config(read_config(layout))
        progress = add_alarms(read_progress(layout, config, str(root)), config)
    except (RlcmError, PermissionError) as error:
        return ListedRun(root, size, fault=one_line(error))
    return ListedRun(root, size, config, progress)


def name_state(run: ListedRun, now: float) -> str:
    """Return the state of a run in a word: `done`, `ended`, `running`, `stopped` or `damaged`.

    `ended` is done before all its iterations were; `stopped` has written nothing for long. `now`: since the epoch.
    """
    progress = run.progress
    if progress is None:
        return "damaged"
    still = seconds_still(progress, now) is not None
    if progress.finished or (still and progress.done >= progress.planned):  # by hand, no last evaluation need come
        return "done" if progress.done >= progress.planned else "ended"
    return "stopped" if still else "running"


def measure_folder(folder: Path) -> int:
    """Sum the bytes of the files in a folder, as far as they may be read."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(root, name)).st_size
            except OSError:  # removed meanwhile
                continue


def _walk(folder: Path, levels: int, seen: set[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in seen:  # a link to a folder above, or a second one to the same
        return
    seen.add(real)
    if is_run(folder):
        yield folder
        return
    if not levels:
        return
    try:
        inner = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return
    for entry in inner:
        yield from _walk(entry, levels - 1, seen)
