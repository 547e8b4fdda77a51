"""Whether a machine can run rlcm, and a model; what to do where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rlcm_cli.config import Config
from rlcm_cli.measuring.doctor.finding import Finding

__all__ = ["Finding", "examine", "examine_model", "try_model"]


def examine(runs: Path) -> Iterator[Finding]:
    """Look at one thing after another, within seconds; nothing is changed, and nothing fetched."""
    from rlcm_cli.measuring.doctor import machine, packages, places

    yield machine.check_python()
    yield packages.check_packages()
    yield from machine.check_torch()
    yield machine.check_memory()
    yield places.check_runs(runs)
    yield places.check_embedded()
    yield from places.check_caches()
    yield places.check_hub()
    yield from packages.check_extras()


def examine_model(runs: Path, resolve: Callable[[], Config]) -> Iterator[Finding]:
    """Look at the machine, then at a model, of which only configurations are downloaded.

    `resolve` returns the configuration that names the model, for which it may ask the model how it is drawn.
    """
    sound = True
    for finding in examine(runs):
        sound = sound and finding.status != "problem"
        yield finding
    if not sound:
        yield Finding("model", "problem", "not looked at, since something above does not work", "fix that first")
        return
    from rlcm_cli.measuring.doctor.model import describe_model

    yield from describe_model(resolve)


def try_model(runs: Path, resolve: Callable[[], Config], steps: int | None) -> Iterator[Finding]:
    """Look at the machine and at a model, then load it and take each step of a run with it once.

    `steps`: model calls an image; None: as many as are recommended.
    """
    sound = True
    for finding in examine_model(runs, resolve):
        sound = sound and finding.status != "problem"
        yield finding
    if sound:
        from rlcm_cli.measuring.doctor import trial

        yield from trial.try_model(resolve, steps)
