"""Watched rewards: what the metrics of a run say of them, and when they raise the alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcm_cli.config import WatchSettings
from rlcm_cli.core.hacking import best_iteration, find_fall

Metrics = Sequence[Mapping[str, Any]]
"""Metrics of the iterations, oldest first, as `train` publishes them."""


def best_checkpoints(metrics: Metrics, settings: WatchSettings) -> dict[str, int]:
    """Give the best checkpoint by each watched reward: the one that drew its best window's last images."""
    best = {}
    for name in settings.rewards:
        rows = _watched_since(metrics, name)
        if rows:
            number = best_iteration([row["watched"][name] for row in rows], settings.window)
            best[name] = int(rows[number]["iteration"])
    return best


def find_hacking(metrics: Metrics, settings: WatchSettings) -> dict[str, str]:
    """Give one line for each watched reward that fell while the trained reward rose."""
    alarms = {}
    best = best_checkpoints(metrics, settings)
    for name in settings.rewards:
        rows = _watched_since(metrics, name)
        found = find_fall(
            [row["reward_mean"] for row in rows],
            [row["watched"][name] for row in rows],
            [row["reward_stds"][name] for row in rows],
            window=settings.window,
            fall=settings.fall,
        )
        if found:
            alarms[name] = (
                f"the watched reward '{name}' fell from {found.watched[0]:.3g} to {found.watched[1]:.3g} "
                f"({found.deviations:.1f} standard deviations) while the trained one rose from "
                f"{found.trained[0]:.3g} to {found.trained[1]:.3g}: the reward is being hacked; by '{name}' the best "
                f"checkpoint is {best[name]}"
            )
    return alarms


def _watched_since(metrics: Metrics, name: str) -> Metrics:
    """Give the newest iterations without a gap in which a reward was watched."""
    rows: list[Mapping[str, Any]] = []
    for row in reversed(metrics):
        if name not in row["watched"]:
            break
        rows.append(row)
    return rows[::-1]
