"""The metrics of a run, one record an iteration: written by `train`, read by reports, trackers and views.

RUN/metrics/000001.json   of the iteration that made checkpoint 1, with the run's identity and a digest
RUN/metrics.jsonl         a line an iteration, derived from these files
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import CorruptFileError, ForeignFileError, MissingFileError
from rlcm_cli.store.atomic import publish_bytes, replace_bytes, set_aside
from rlcm_cli.store.identity import check_owner, read_run_identity
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.reading import (
    LARGEST_JSON,
    REMEDY,
    Record,
    describe_fault,
    parse_json,
    parse_record,
    read_bytes,
    read_json,
)
from rlcm_cli.wording import to_json_values

PHASES = ("sample", "score", "train")
"""The phases of an iteration, in the order in which they run."""
TIMES = (*(f"{phase}_seconds" for phase in PHASES), "cpu_seconds", "finished_at")
"""Metrics that differ when an iteration is done again."""
NOT_METRICS = ("run", "digest", "format_version")
"""Members of a metrics file that are not metrics."""

Count = Annotated[int, Field(ge=0)]
Measure = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number; one that is not finite is null in a file, and NaN here when it was read from one."""
ByName = dict[str, Measure]


class IterationMetrics(Record):
    """The metrics of an iteration.

    Beside the fields below, a record holds the numbers that the optimizer steps measured, by their names: see
    `measured`.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: ByName = Field(init=False)

    iteration: Count
    """Counted from 0, as its rollout is."""
    checkpoint: Count
    """That it made: `iteration` + 1."""
    reward_mean: Measure
    """Of the training reward over the iteration's images."""
    reward_std: Measure
    reward_best: Measure
    rewards: ByName
    """Mean of each reward that is trained on."""
    reward_stds: ByName
    """Standard deviation over images of each reward, trained on or monitored."""
    monitored: ByName
    """Mean of each reward that is only monitored."""
    tasks: ByName
    """Mean of the training reward of each task."""
    reward_revisions: dict[str, str] = Field(default_factory=dict)
    """Digest of what is behind each reward that has code, weights or a server behind it."""
    samples: Count | None = None
    """Images."""
    updates: Count | None = None
    """Optimizer steps."""
    forwards: Count | None = None
    """Model forwards of drawing and training, a backward pass counted as two."""
    learning_rate: Measure | None = None
    flat_prompts: Count | None = None
    """Prompts whose images all have the same reward."""
    micro_batch_size: Count | None = None
    gradient_checkpointing: bool | None = None
    sample_seconds: float | None = None
    score_seconds: float | None = None
    train_seconds: float | None = None
    cpu_seconds: float | None = None
    """Processor time of the three phases, of all processes."""
    finished_at: float | None = None
    """Seconds since the epoch."""

    @property
    def measured(self) -> Mapping[str, float]:
        """What the optimizer steps measured: means over the steps, and `ratio_drift`, of which the largest counts.

        Which numbers these are depends on the objective (`Objective.metrics`) and on what else is learned from; an
        iteration that took no step has none.
        """
        return self.__pydantic_extra__

    @property
    def numbers(self) -> Mapping[str, float]:
        """What was measured of the updates, and what they were made with, by name; finite numbers only."""
        others = ("learning_rate", "flat_prompts", "updates", "samples", "forwards")
        named = {**self.measured, **{name: getattr(self, name) for name in others}}
        known = {name: value for name, value in named.items() if value is not None}
        return {name: value for name, value in known.items() if math.isfinite(value)}

    def with_measured(self, values: Mapping[str, float]) -> IterationMetrics:
        """Return the record with the numbers that the optimizer steps measured."""
        return IterationMetrics.model_validate({**self.model_dump(), **values})

    @property
    def scored(self) -> Mapping[str, float]:
        """Mean of each reward, trained on or monitored."""
        return {**self.monitored, **self.rewards}

    def seconds(self, phase: str) -> float | None:
        """Return how long a phase of `PHASES` took; None where it is not known."""
        found: float | None = getattr(self, f"{phase}_seconds")
        return found

    def as_row(self) -> dict[str, Any]:
        """Return what a metrics file holds, but for the seal: plain values by name, null for what is not finite."""
        row: dict[str, Any] = to_json_values(self.model_dump(exclude_none=True))
        return row


def publish_metrics(layout: RunLayout, metrics: IterationMetrics) -> None:
    """Write the metrics of an iteration, and derive `metrics.jsonl` from those of all iterations.

    Those of an update that was done before, and whose checkpoint is lost, stay where they differ only in times; else
    they are moved into quarantine. Raises `ForeignFileError` where those of another run or checkpoint lie there.
    """
    number = metrics.checkpoint
    path = layout.metrics(number)
    if path.exists():
        before = read_iteration_metrics(layout, number)
        if _without_times(before) == _without_times(metrics):
            metrics = before
        else:
            set_aside(path, layout.quarantine / path.relative_to(layout.root))
    record = {**_to_line(metrics), "run": read_run_identity(layout)}
    publish_bytes(path, json.dumps({**record, "digest": digest_json(record)}, ensure_ascii=False).encode())
    lines = _read_lines(layout)
    if len(lines) == number - 1:  # the usual case, without reading a thousand files an iteration
        lines.append(json.dumps(_to_line(metrics), ensure_ascii=False))
    else:
        lines = [json.dumps(_to_line(row), ensure_ascii=False) for row in read_metrics(layout)]
    replace_bytes(layout.metrics_jsonl, ("\n".join(lines) + "\n").encode())


def read_metrics(layout: RunLayout) -> list[IterationMetrics]:
    """Read the metrics of all iterations, oldest first. Raises as `read_iteration_metrics`."""
    return [read_iteration_metrics(layout, number) for number in layout.measured()]


def read_iteration_metrics(layout: RunLayout, number: int) -> IterationMetrics:
    """Read the metrics of the iteration that made checkpoint `number`.

    Raises the errors of `read_json`, and `ForeignFileError` for those of another run or checkpoint.
    """
    path = layout.metrics(number)
    remedy = REMEDY.format(path=path)
    values = read_json(path)
    sealed = {key: value for key, value in values.items() if key != "digest"}
    if not isinstance(values.get("run"), str):
        raise CorruptFileError(f"{path}: is not a metrics file (run: not there); {remedy}")
    metrics = parse_record(_strip(values), IterationMetrics, path, "metrics")
    check_owner(values["run"], layout, path)
    if (metrics.checkpoint, metrics.iteration) != (number, number - 1):
        raise ForeignFileError(f"{path}: has the metrics of checkpoint {metrics.checkpoint}; {remedy}")
    if values.get("digest") != digest_json(sealed):
        raise CorruptFileError(f"{path}: is not as it was published: its digest is another's; {remedy}")
    return metrics


def read_derived_metrics(layout: RunLayout) -> list[IterationMetrics]:
    """Read `metrics.jsonl`, for a copy of a run without the files that it is derived from.

    Raises the errors of `read_bytes`, and `CorruptFileError` for what is not a list of metrics.
    """
    path, remedy = layout.metrics_jsonl, "copy the run's metrics folder, from which it is derived"
    try:
        rows = [parse_json(line) for line in read_bytes(path, LARGEST_JSON).splitlines()]
    except ValueError as error:
        raise CorruptFileError(f"{path}: is not a list of metrics ({describe_fault(error)}); {remedy}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise CorruptFileError(f"{path}: is not a list of metrics; {remedy}")
    return [parse_record(_strip(row), IterationMetrics, path, "list of metrics", remedy) for row in rows]


def _strip(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in NOT_METRICS}


def _to_line(metrics: IterationMetrics) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **metrics.as_row()}


def _without_times(metrics: IterationMetrics) -> dict[str, Any]:
    return {name: value for name, value in metrics.as_row().items() if name not in TIMES}


def _read_lines(layout: RunLayout) -> list[str]:
    """Read `metrics.jsonl`, which is derived: what cannot be read of it is written again."""
    with contextlib.suppress(MissingFileError, CorruptFileError, UnicodeDecodeError):
        return read_bytes(layout.metrics_jsonl, LARGEST_JSON).decode().splitlines()
    return []
