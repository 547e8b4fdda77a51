"""rlcm as the comparisons run it: the phases of an iteration, one after another, with the model loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from examples.benchmarks.costs import Cost, measure
from rlcm_cli.config import Config
from rlcm_cli.events import Event
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run


class RlcmSide:
    """A run, and its iterations' costs."""

    def __init__(self, root: Path, config: Config) -> None:
        self.run = create_run(root, config)
        self.model = load_policy_model(config)
        self.scorers = load_scorers(self.run)

    def iterate(self) -> dict[str, Cost]:
        """Draw, score and train an iteration, files and checkpoint included: phase → its cost."""
        phases: dict[str, Callable[[], Iterator[Event]]] = {
            "sample": lambda: sample(self.run, self.model),
            "score": lambda: score(self.run, self.scorers, device=self.model.device),
            "train": lambda: train(self.run, self.model, self.scorers),
        }
        return {name: measure(lambda phase=phase: [*phase()]) for name, phase in phases.items()}  # type: ignore[misc]
