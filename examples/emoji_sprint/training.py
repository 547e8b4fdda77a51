"""A training loop that a kill does not harm: what it needs to go on is written every few minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from examples.emoji_lcm.training import Log

LOG_EVERY = 100


class Stateful(Protocol):
    """A module, an optimizer or a scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Become what a state tells."""


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, decay: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Take an optimizer step down a loss, its gradient cut to norm 1, and one of the learning rate."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    decay.step()


@dataclass(frozen=True)
class Loop:
    """How a stage is trained: for `steps`, with a checkpoint in `folder` every `seconds`."""

    name: str
    steps: int
    folder: Path
    log: Log
    seconds: float = 120.0

    @property
    def checkpoint(self) -> Path:
        """Of the unfinished training; it may be removed when its result is written."""
        return self.folder / f"{self.name}.checkpoint"

    def run(self, parts: Mapping[str, Stateful], step: Callable[[int], Mapping[str, float]]) -> None:
        """Call `step` with 0, 1, … and log the means of what it returns.

        Where there is a checkpoint, the parts and torch's random numbers become what they were, and the steps before
        it are left out: a training that was killed ends with the weights of an undisturbed one.
        """
        start = self._restore(parts)
        began = saved = time.monotonic()
        totals: dict[str, float] = {}
        count = 0
        for index in range(start, self.steps):
            for name, value in step(index).items():
                totals[name] = totals.get(name, 0.0) + value
            count += 1
            if (index + 1) % LOG_EVERY == 0 or index == self.steps - 1:
                means = " ".join(f"{name} {total / count:.4f}" for name, total in totals.items())
                self.log(f"{self.name} {index + 1} {means} {time.monotonic() - began:.0f} s")
                totals, count = {}, 0
            if time.monotonic() - saved >= self.seconds and index + 1 < self.steps:
                self._save(parts, index + 1)
                saved = time.monotonic()

    def _restore(self, parts: Mapping[str, Stateful]) -> int:
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        start = int(state["step"])
        self.log(f"{self.name}: goes on after step {start}")
        return start

    def _save(self, parts: Mapping[str, Stateful], step: int) -> None:
        fresh = self.checkpoint.with_name(f".{self.checkpoint.name}.new-{os.getpid()}")
        torch.save(
            {
                "step": step,
                "parts": {name: part.state_dict() for name, part in parts.items()},
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            fresh,
        )
        fresh.replace(self.checkpoint)
