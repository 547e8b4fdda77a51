"""What a benchmark runs: methods, models, tasks and seeds of a plan in TOML, as the list of its runs."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.benchmark.results import Target, final_reward, read_result, results_folder
from examples.benchmark.tuning import Space, Trial, choose

RUN_KEYS = {"tasks", "models", "methods", "seeds", "processor_seconds", "until_target", "every", "tuned", "finals"}
TUNING_KEYS = {"task", "models", "methods", "seeds", "processor_seconds", "learning_rates", "trials"}


@dataclass(frozen=True)
class Cell:
    """One run of a plan."""

    task: str
    model: str
    method: str
    seed: int
    preset: str
    """Of `rlcm tasks`."""
    settings: tuple[str, ...]
    """Of --set: the task's, those of the task on the model, the method's, its on the model, its on the task, and its
    on the task with the model; then those of the trial."""
    target: Target | None = None
    processor_seconds: float | None = None
    """Of sampling, scoring and training, after which the run ends; None: at the preset's iterations."""
    until_target: bool = False
    every: int = 5
    """Iterations between two evaluations."""
    reward: Mapping[str, float] = field(default_factory=dict)
    """The reward that is trained for: weights of measures."""
    finals: bool = False
    """Whether its last policy is measured further, by `examples.benchmark.finals`."""
    trial: str | None = None
    """Of tuning; None: a run that is reported."""

    @property
    def name(self) -> str:
        """Name of its folder and of its file of results."""
        trial = f"-{self.trial}" if self.trial else ""
        return f"{self.task}-{self.model}-{self.method}{trial}-{self.seed}"


@dataclass(frozen=True)
class Tuning:
    """The tuning of one method on one model."""

    cells: tuple[Cell, ...]
    """Its runs without a trial's settings, one a seed."""
    space: Space

    @property
    def name(self) -> str:
        """Name of its lock."""
        one = self.cells[0]
        return f"{one.task}-{one.model}-{one.method}-tuning"

    def runs_of(self, trial: Trial) -> list[Cell]:
        """Return the runs of a trial, one a seed."""
        name = self.space.name(trial)
        return [
            replace(cell, settings=(*cell.settings, *self.space.settings(trial)), trial=name) for cell in self.cells
        ]

    def scores(self, results: Path) -> dict[Trial, float]:
        """Return the mean final reward of each trial that has all of its results in a folder."""
        scores = {}
        for trial in self.space.all_trials():
            files = [results / f"{cell.name}.json" for cell in self.runs_of(trial)]
            if all(file.exists() for file in files):
                scores[trial] = fmean(final_reward(read_result(file)) for file in files)
        return scores


def read_plan(path: Path) -> list[Cell]:
    """Read the runs of a plan that are known, each once, in its order; without the trials. Raises as `read_blocks`."""
    return list({cell.name: cell for block in reversed(read_blocks(path)) for cell in reversed(block)}.values())[::-1]


def read_blocks(path: Path) -> list[list[Cell]]:
    """Read the runs of each [[runs]] of a plan; those of a method whose tuning is not at its end are left out.

    Raises `ValueError` for a name that the plan does not explain.
    """
    plan = _read(path)
    chosen = {}
    for tuning in read_tunings(path):
        if trial := choose(tuning.space, tuning.scores(results_folder(path))):
            one = tuning.cells[0]
            chosen[one.model, one.method] = tuning.space.settings(trial)
    return [_read_block(path, plan, block, chosen) for block in plan["runs"]]


def read_tunings(path: Path) -> list[Tuning]:
    """Read which methods are tuned on which models. Raises as `read_blocks`."""
    plan = _read(path)
    tunings = []
    for block in plan.get("tuning", []):
        _check_keys(path, "tuning", block, TUNING_KEYS)
        for model, method in itertools.product(block["models"], block["methods"]):
            cells = tuple(
                replace(_make_cell(path, plan, block, (block["task"], model, method, seed)), every=10_000)
                for seed in block["seeds"]
            )
            knob = tuple(map(tuple, plan["methods"][method].get("knob", [[]])))
            tunings.append(Tuning(cells, Space(tuple(block["learning_rates"]), knob, block["trials"])))
    return tunings


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _read_block(
    path: Path, plan: Mapping[str, Any], block: Mapping[str, Any], chosen: Mapping[tuple[str, str], tuple[str, ...]]
) -> list[Cell]:
    _check_keys(path, "runs", block, RUN_KEYS)
    names = itertools.product(*(block[key] for key in ("seeds", "tasks", "models", "methods")))
    cells = [_make_cell(path, plan, block, (task, model, method, seed)) for seed, task, model, method in names]
    if not block.get("tuned"):
        return cells
    tuned_as = {name: how.get("tuned_as", name) for name, how in plan["methods"].items()}
    return [
        replace(cell, settings=(*cell.settings, *chosen[cell.model, tuned_as[cell.method]]))
        for cell in cells
        if (cell.model, tuned_as[cell.method]) in chosen
    ]


def _check_keys(path: Path, table: str, block: Mapping[str, Any], keys: set[str]) -> None:
    if unknown := set(block) - keys:
        raise ValueError(f"{path}: [[{table}]] has {', '.join(sorted(unknown))}; it takes {', '.join(sorted(keys))}")


def _make_cell(
    path: Path, plan: Mapping[str, Any], block: Mapping[str, Any], names: tuple[str, str, str, int]
) -> Cell:
    task, model, method, seed = names
    for table, name in (("tasks", task), ("methods", method)):
        if name not in plan[table]:
            raise ValueError(f"{path}: [{table}.{name}] is missing, which a block of runs asks for")
    about, how = plan["tasks"][task], plan["methods"][method]
    target = about.get(model, {}).get("target", about.get("target"))
    of_both = how.get(task, {}).get(model, {})
    return Cell(
        task=task,
        model=model,
        method=method,
        seed=seed,
        preset=how.get(task, {}).get("preset", about["preset"]),
        settings=tuple(
            setting
            for table in (about, about.get(model, {}), how, how.get(model, {}), how.get(task, {}), of_both)
            for setting in table.get("settings", [])
        ),
        target=Target(**target) if target else None,
        processor_seconds=block.get("processor_seconds"),
        until_target=block.get("until_target", False),
        every=how.get("every", block.get("every", 5)),
        reward=about.get(model, {}).get("reward", about.get("reward", {})),
        finals=block.get("finals", False),
    )
