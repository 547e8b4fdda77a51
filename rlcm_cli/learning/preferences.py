"""Which of two images of a prompt is better: by their rewards, or by a table of pairs.

A table has a row a pair, with the columns `iteration` (the number of the rollout's folder, from 0), `chosen` and
`rejected` (numbers of samples in it, from 0, of one group). It may be CSV, TSV, JSON, JSON lines or parquet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.preferences import best_and_worst
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.objectives import find_objective
from rlcm_cli.prompts.tables import TABLE_SUFFIXES, Table, read_table

COLUMNS = ("iteration", "chosen", "rejected")


def pick_pairs(learner: Learner, samples_M: Tensor) -> Tensor:
    """Return the pairs of an optimizer step, rows of the rollout, int64 [P, 2]: the better, then the worse.

    Those of a table whose samples are among `samples_M`; without one, the best and the worst image of each group,
    unless all are equal.
    """
    if learner.pairs is not None:
        return learner.pairs[torch.isin(learner.pairs, samples_M).all(1)]
    groups_GK = samples_M.view(-1, learner.rollout.manifest.group_size)
    return groups_GK.flatten()[best_and_worst(learner.weights[groups_GK])]


def find_pairs(config: Config, rollout: Rollout) -> Tensor | None:
    """Return the pairs that a configuration's table has of a rollout; None where it has no table.

    Raises as `read_pairs`.
    """
    file = find_objective(config).pairs_file(config.objective)
    return None if file is None else read_pairs(Path(file), rollout)


def read_pairs(path: Path, rollout: Rollout) -> Tensor:
    """Read the pairs of a rollout from a table, rows int64 [P, 2]. Raises `ConfigError` for one that does not fit."""
    kind = TABLE_SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"objective.pairs: {path} is not a table; name a file that ends in {', '.join(TABLE_SUFFIXES)}"
        )
    table, iteration = read_table(kind, path, COLUMNS, "pairs file"), rollout.manifest.iteration
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ConfigError(f"{table.file}: there is no column '{missing[0]}'; the columns are {', '.join(COLUMNS)}")
    pairs = []
    for place, cells in table.rows:
        number, chosen, rejected = (_read_count(table, place, column, cells) for column in COLUMNS)
        if number == iteration:
            _check_pair(f"{table.file}, {place}", chosen, rejected, rollout)
            pairs.append((chosen, rejected))
    if not pairs:
        raise ConfigError(
            f"{table.file}: has no pair of iteration {iteration}; add rows whose '{COLUMNS[0]}' is {iteration}, then "
            "run the same command again"
        )
    return torch.tensor(pairs)


def _read_count(table: Table, place: str, column: str, cells: Mapping[str, Any]) -> int:
    value = cells.get(column)
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(f"{table.file}, {place}: '{column}' is not a whole number of 0 or more; correct it")
    return int(text)


def _check_pair(where: str, chosen: int, rejected: int, rollout: Rollout) -> None:
    count, size = len(rollout.trajectories), rollout.manifest.group_size
    for sample in (chosen, rejected):
        if sample >= count:
            raise ConfigError(f"{where}: there is no sample {sample}; the iteration has {count}, counted from 0")
    if chosen == rejected or chosen // size != rejected // size:
        raise ConfigError(
            f"{where}: samples {chosen} and {rejected} are not two of one group, which has the {size} images of a "
            "prompt that were drawn together; pair others"
        )
