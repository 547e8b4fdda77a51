"""Whether a machine can run rlcm, and what to do where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlcm_cli.measuring.doctor.finding import Finding

__all__ = ["Finding", "examine"]


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
