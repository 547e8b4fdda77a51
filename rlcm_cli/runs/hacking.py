"""Monitored rewards: what the metrics of a run say of them, and when they raise the alarm."""

from __future__ import annotations

from collections.abc import Sequence

from rlcm_cli.config import Config, MonitorSettings, SampleSettings
from rlcm_cli.core.hacking import best_iteration, find_fall
from rlcm_cli.store.metrics import IterationMetrics

Metrics = Sequence[IterationMetrics]
"""Of the iterations, oldest first."""


def best_checkpoints(
    metrics: Metrics,
    settings: MonitorSettings,
    sample: SampleSettings = SampleSettings(),
) -> dict[str, int]:
    """Return the best checkpoint by each monitored reward: the one that drew its best window's last images."""
    best = {}
    for name in settings.rewards:
        rows = _monitored_since(metrics, name)
        if rows:
            number = best_iteration([row.monitored[name] for row in rows], settings.window)
            best[name] = sample.drawing_checkpoint(rows[number].iteration)
    return best


def trained_progress(metrics: Metrics, config: Config) -> list[float]:
    """Return what each iteration reached of what is trained for, one number that only a comparison gives a meaning.

    Rewards count by their weights: as they are where the task sums them, else in standard deviations over the
    first iteration's images, as in training, so that the one with the largest unit does not decide.
    """
    scales = {
        (task, name): 1.0 if choice.combine == "sum" else metrics[0].reward_stds[name] or 1.0
        for task, choice in config.joint_tasks().items()
        for name in choice.rewards
        if metrics
    }
    return [
        sum(
            weight * row.rewards[name] / scales[task, name]
            for task, choice in config.joint_tasks().items()
            for name, weight in choice.rewards.items()
        )
        for row in metrics
    ]


def find_hacking(
    metrics: Metrics,
    settings: MonitorSettings,
    trained: Sequence[float],
    sample: SampleSettings = SampleSettings(),
) -> dict[str, str]:
    """Return one line for each monitored reward that fell while what is trained for, one number an iteration, rose."""
    alarms = {}
    best = best_checkpoints(metrics, settings, sample)
    for name in settings.rewards:
        rows = _monitored_since(metrics, name)
        found = find_fall(
            trained[len(metrics) - len(rows) :],
            [row.monitored[name] for row in rows],
            [row.reward_stds[name] for row in rows],
            window=settings.window,
            fall=settings.fall,
        )
        if found:
            alarms[name] = (
                f"the monitored reward '{name}' fell from {found.monitored[0]:.3g} to {found.monitored[1]:.3g} "
                f"({found.deviations:.1f} standard deviations) while the training reward rose: the policy is "
                f"hacking it; the best checkpoint by '{name}' is {best[name]}"
            )
    return alarms


def find_alarms(config: Config, metrics: Metrics) -> dict[str, str]:
    """Return one line for each monitored reward by which a run's training reward is being hacked."""
    if not config.monitor.rewards:
        return {}
    return find_hacking(metrics, config.monitor, trained_progress(metrics, config), config.sample)


def advise_checkpoint(metrics: Metrics, config: Config) -> tuple[int, str] | None:
    """Return the checkpoint to use in the place of the newest, and the monitored reward that it is the best by.

    None where no reward is being hacked.
    """
    found = find_alarms(config, metrics)
    best = best_checkpoints(metrics, config.monitor, config.sample)
    return next(((best[name], name) for name in found), None)


def _monitored_since(metrics: Metrics, name: str) -> Metrics:
    """Return the newest iterations without a gap in which a reward was monitored."""
    rows: list[IterationMetrics] = []
    for row in reversed(metrics):
        if name not in row.monitored:
            break
        rows.append(row)
    return rows[::-1]
