"""Where a run is: a folder, or a URL that is worked on through a stage on this machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from rlcm_cli.errors import ConfigError, RlcmError
from rlcm_cli.store.remote.objects import is_url
from rlcm_cli.wording import command

if TYPE_CHECKING:
    from rlcm_cli.config import Config
    from rlcm_cli.events import Event
    from rlcm_cli.runs.run import Run
    from rlcm_cli.store.remote.publishing import Publisher
    from rlcm_cli.store.remote.remote_run import RemoteRun


@dataclass(frozen=True)
class Location:
    """A run's folder, and its URL if it is stored elsewhere."""

    root: Path | None
    """The folder, or the stage of a URL; None: none is named."""
    url: str | None = None
    publisher: Publisher | None = None
    """None: nothing will be published."""

    @property
    def existing(self) -> Path:
        """The folder, for a command whose run must be named."""
        if self.root is None:
            raise ConfigError("no run given; use --run DIR")
        return self.root

    def describe(self, text: object) -> str:
        """Return a path or a line as the user knows it: with the URL instead of the stage."""
        return str(text) if self.url is None else str(text).replace(str(self.root), self.url)

    def confirm(self, config: Config) -> None:
        """Check that no other machine has started the run with other settings at the same time.

        Raises `RunMismatchError`.
        """
        if self.publisher and self.root:
            from rlcm_cli.runs.run import check_run

            self.publisher.publish()
            check_run(self.root, config)

    def follow(self, events: Iterable[Event], loop: Run | None = None) -> Iterable[Event]:
        """Yield a phase's events while publishing what they leave; prune as a loop's settings say."""
        if self.publisher is None:
            return events
        from rlcm_cli.runs.staging import LoopPublisher, follow_published

        return follow_published(events, LoopPublisher(loop, self.publisher) if loop else self.publisher.publish)


@contextlib.contextmanager
def open_location(
    named: str | None, fetch: Callable[[RemoteRun], object], *, publishes: bool = False
) -> Iterator[Location]:
    """Open the location of a run; for a URL, `fetch` what is needed first and publish what is new at the end.

    Raises `ConfigError`, `RemoteStoreError`, and the block's errors with the URL instead of the stage.
    """
    if named is None or not is_url(named):
        yield Location(None if named is None else local_path(named))
        return
    from rlcm_cli.store.remote.publishing import Publisher
    from rlcm_cli.store.remote.remote_run import open_remote

    remote = open_remote(named)
    publisher = Publisher(remote) if publishes else None
    publish = publisher.publish if publisher else lambda: None
    location = Location(remote.layout.root, remote.store.url, publisher)
    try:
        publish()  # what a killed process left
        with remote.stage.lock():
            fetch(remote)
        try:
            yield location
        except RlcmError:
            with contextlib.suppress(RlcmError):  # the block's error is the one to report
                publish()
            raise
        publish()
    except RlcmError as error:
        raise type(error)(location.describe(error)) from error


def local_path(named: str) -> Path:
    """Return the path that a plain path or a `file://` URL names."""
    return Path(unquote(named.removeprefix("file://"))) if named.startswith("file://") else Path(named)


def expand_folder(named: str) -> list[str]:
    """Return the runs in a folder that is none itself, in the order of people; else what is named.

    Raises `ConfigError` for what `rlcm evaluate --out` wrote.
    """
    from rlcm_cli.report.run.listing import find_runs

    path = local_path(named)
    if is_url(named) or (path / "config.json").is_file():
        return [named]
    inner = sorted(map(str, find_runs(path)), key=natural_key)
    if not inner:
        refuse_evaluation(path)
    return inner or [named]


def refuse_evaluation(folder: Path) -> None:
    """Raise `ConfigError` for a folder with the results of an evaluation outside of a run."""
    from rlcm_cli.judging.folder import RESULTS, SUMMARY

    if (folder / RESULTS).is_file() and (folder / SUMMARY).is_file():
        raise ConfigError(
            f"{folder}: is not a run; it holds images that `rlcm evaluate` drew outside of one; see its table with "
            f"`{command('evaluate', '--images', folder)}`"
        )


def natural_key(text: str) -> list[tuple[int, str]]:
    """Return what names are sorted by, so that 10 comes after 9."""
    parts = re.split(r"([0-9]+)", text)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]
