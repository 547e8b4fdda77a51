"""Which checkpoint a user means: a number, the last, or the best by what the run's evaluations or metrics say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.runs.hacking import advise_checkpoint, best_checkpoints
from rlcm_cli.runs.held_out import best_held_out, measure_reward, read_held_out
from rlcm_cli.store.checkpoint import latest_checkpoint
from rlcm_cli.store.evaluations import comparable_evaluations, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.wording import command, join_numbers

BEST, LAST = "best", "last"
LARGEST = 10**9


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint, and why it is the one."""

    number: int
    why: str = ""
    """Of the best one, what it is the best by; empty for one that is named by its number or as the last."""

    def __str__(self) -> str:
        return f"checkpoint {self.number}" + (f", {self.why}" if self.why else "")


def is_choice(text: str) -> bool:
    """Return whether a text names a checkpoint as `choose_checkpoint` reads it, whichever the run has."""
    number = text.isascii() and text.isdecimal()
    return text in (BEST, LAST) or (text.startswith(f"{BEST}:") and len(text) > len(BEST) + 1) or number


def choose_checkpoint(layout: RunLayout, config: Config, text: str) -> ChosenCheckpoint:
    """Find the checkpoint of a run that a text names; it need not be there any longer.

    `best` is the one that the held-out reward was highest at or, where the training reward is being hacked, the one
    to use by the monitored reward that shows it. `best:REWARD` goes by a single reward: on the held-out images where
    two evaluations have it, else in training where it is monitored.

    Args:
        layout: The run.
        config: Its configuration.
        text: A number, `last`, `best` or `best:REWARD`.

    Raises:
        ConfigError: If the text is none of these, or the best one is not known.
        StoreError: If what it is chosen by cannot be read.
    """
    check_choice(text)
    if text == LAST:
        return ChosenCheckpoint(latest_checkpoint(layout))
    if text == BEST:
        return _choose_best(layout, config)
    if text.startswith(f"{BEST}:"):
        return _choose_by(layout, config, text.removeprefix(f"{BEST}:"))
    return ChosenCheckpoint(int(text))


def check_choice(text: str) -> None:
    """Raise `ConfigError` for a text that names no checkpoint."""
    if not is_choice(text) or (text.isdecimal() and int(text) >= LARGEST):
        raise ConfigError(
            f"--checkpoint {text}: is not a checkpoint; give its number, {LAST}, {BEST}, or {BEST}:REWARD such as "
            f"{BEST}:recognition"
        )


def require_checkpoint(layout: RunLayout, number: int) -> None:
    """Raise `MissingFileError` where a run does not have a checkpoint, with those that it has."""
    there = layout.checkpoints()
    if number not in there:
        known = join_numbers(there) or "none"
        inspect = command("inspect", layout.root)
        raise MissingFileError(
            f"{layout.checkpoint(number)}: there is no such checkpoint; the run has {known} (see `{inspect}`)"
        )


def describe_better(layout: RunLayout, config: Config) -> str | None:
    """Say which checkpoint to use in the place of the newest, where the training reward is being hacked; else None."""
    advised = advise_checkpoint(read_metrics(layout), config)
    if advised is None or advised[0] not in layout.checkpoints() or advised[0] == layout.checkpoints()[-1]:
        return None
    number, name = advised
    return f"the newest checkpoint games the reward; --checkpoint {BEST} is {number}, the best one by '{name}'"


def _choose_best(layout: RunLayout, config: Config) -> ChosenCheckpoint:
    advised = advise_checkpoint(read_metrics(layout), config)
    if advised is not None:
        number, name = advised
        return ChosenCheckpoint(number, f"the best by '{name}', because the training reward is being hacked after it")
    reached = read_held_out(layout, config)
    best = best_held_out(reached)
    if best is None:
        raise ConfigError(
            f"--checkpoint {BEST}: {layout.root} has {len(reached) or 'no'} evaluated checkpoint"
            f"{'s' * (len(reached) != 1)}, and the best is chosen among two or more; {_advise_evaluating(layout)}"
        )
    return ChosenCheckpoint(best, "the best on the held-out images")


def _choose_by(layout: RunLayout, config: Config, name: str) -> ChosenCheckpoint:
    found = [read_evaluation(layout, number, images=False) for number in layout.evaluations()]
    means = measure_reward(comparable_evaluations(found), name)
    best = best_held_out(means)
    if best is not None:
        return ChosenCheckpoint(best, f"the best by '{name}' on the held-out images")
    monitored = best_checkpoints(read_metrics(layout), config.monitor, config.sample)
    if name in monitored:
        return ChosenCheckpoint(monitored[name], f"the best by the monitored '{name}' in training")
    if len(found) < 2:
        remedy = _advise_evaluating(layout)
    else:
        remedy = f"score them with `{command('evaluate', '--run', layout.root, '--reward', name)}`"
    raise ConfigError(
        f"--checkpoint {BEST}:{name}: no two evaluations of {layout.root} have the reward '{name}', and it was not "
        f"monitored; {remedy}"
    )


def _advise_evaluating(layout: RunLayout) -> str:
    """Say how to draw two evaluations of a run: of the first checkpoint that is there, and of the last."""
    there: Sequence[int] = layout.checkpoints()
    chosen = [there[0], there[-1]] if len(there) > 1 else [0, LAST]
    words = [word for number in chosen for word in ("--checkpoint", number)]
    return f"draw them with `{command('evaluate', '--run', layout.root, *words)}`, or give a number"
