"""Make the runs of a plan that have no results yet. Start it several times for several workers.

python -m examples.benchmark.run examples/benchmark/price.toml --threads 1
"""

from __future__ import annotations

import argparse
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from examples.benchmark.finals import measure_finals
from examples.benchmark.measure import count_costs, measure_average, measure_checkpoint
from examples.benchmark.plan import Cell, read_plan, read_tunings
from examples.benchmark.results import find_crossing, results_folder, write_result
from examples.benchmark.tuning import next_trial
from examples.benchmarks.costs import describe_machine
from rlcm_cli.config import Config, resolve_settings
from rlcm_cli.errors import NotFiniteError, TrainingError
from rlcm_cli.events import Evaluated, Event, IterationTrained
from rlcm_cli.models.parts import recommend
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.loop import start_loop
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.processes.job import Processes
from rlcm_cli.runs.run import Run
from rlcm_cli.store.metrics import read_metrics


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of the results; default: results/PLAN next to the plan")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = arguments.results or results_folder(arguments.plan)
    results.mkdir(parents=True, exist_ok=True)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for tuning in read_tunings(arguments.plan):
        if arguments.only not in tuning.name:
            continue
        with claimed(arguments.runs / f"{tuning.name}.lock") as mine:
            while mine and (trial := next_trial(tuning.space, tuning.scores(results))):
                for cell in tuning.runs_of(trial):
                    run_missing(cell, arguments.runs, results)
    for cell in read_plan(arguments.plan):
        if arguments.only in cell.name:
            run_missing(cell, arguments.runs, results)


def run_missing(cell: Cell, runs: Path, results: Path) -> None:
    """Make a run that has no result and that no other worker makes."""
    file = results / f"{cell.name}.json"
    if file.exists():
        return
    with claimed(runs / f"{cell.name}.lock") as mine:
        if mine and not file.exists():
            found = run_cell(cell, runs / cell.name)
            write_result(file, found)
            print(f"{cell.name}: {tell(found)}", flush=True)


def tell(found: dict[str, Any]) -> str:
    """Say what a run reached, in a line."""
    last, crossing = found["points"][-1], find_crossing(found)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in last["all"].items())
    costs = f"{crossing.processor:.0f} s, {crossing.queries:.0f} queries" if crossing else "never"
    return f"target: {costs}; after {last['processor']:.0f} s: {shown}"


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Hold a run for this worker within the block; says whether nobody else does. Ends with the process."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Make one run, or resume it, and measure its evaluations; a run that fails has those up to there."""
    config = configure(cell)
    started = start_loop(folder, config, Processes())
    run, points = started.run, {}

    def measure(number: int) -> None:
        averaged = config.train.ema_decay is not None
        points[number] = measure_average(run, started.model, number) if averaged else measure_checkpoint(run, number)

    for number in run.layout.evaluations():  # of a run that is resumed
        measure(number)
    try:
        for event in started.events:
            if isinstance(event, Evaluated):
                measure(event.checkpoint)
            if is_over(cell, run, event, points):
                break
        last = run.layout.checkpoints()[-1]
        if last not in points and not cell.until_target:
            for _ in evaluate(run, started.model, load_scorers(run), last):
                pass
            measure(last)
        finals = measure_finals(run, started.model) if cell.finals else {}
    except (TrainingError, NotFiniteError) as error:
        return {**describe(cell, points), "failed": str(error)}
    return {**describe(cell, points), "finals": finals}


def is_over(cell: Cell, run: Run, event: Event, points: dict[int, dict[str, object]]) -> bool:
    """Say whether a run ends with an event: at its target, or with its processor time."""
    if isinstance(event, Evaluated) and cell.until_target:
        return find_crossing(describe(cell, points)) is not None
    if isinstance(event, IterationTrained) and cell.processor_seconds is not None:
        return count_costs(read_metrics(run.layout)).processor >= cell.processor_seconds
    return False


def configure(cell: Cell) -> Config:
    """Return the configuration of a run, sampled as its model recommends, as `rlcm loop --model` does."""
    own = [f"seed={cell.seed}", f"evaluate.every={cell.every}", "runtime.keep_rollouts=1", "runtime.device=cpu"]
    return resolve_settings(
        [cell.preset],
        assignments=[*own, *cell.settings],
        flags={"model.name": cell.model},
        recommend=lambda model: recommend(model.name, revision=model.pinned_revision),
    )[0]


def describe(cell: Cell, points: dict[int, dict[str, object]]) -> dict[str, Any]:
    """Gather the result of a run, as its file has it."""
    return {
        "task": cell.task,
        "model": cell.model,
        "method": cell.method,
        "trial": cell.trial,
        "seed": cell.seed,
        "settings": list(cell.settings),
        "reward": dict(cell.reward),
        "target": None if cell.target is None else vars(cell.target),
        "machine": describe_machine(),
        "points": [points[number] for number in sorted(points)],
    }


if __name__ == "__main__":
    main()
