"""The option --checkpoint of commands that use the weights of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlcm_cli.cli.location import open_location
from rlcm_cli.store.remote.objects import is_url

CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="N|best",
        help="Checkpoint of the run: a number, last, best, or best:REWARD.",
        show_default="the newest",
    ),
]


def name_checkpoint(place: str, text: str | None) -> tuple[str, list[str]]:
    """Return the place of a run's checkpoint that a text names, and notes on it; None: of whatever the place holds.

    The notes say what the best checkpoint is the best by and, where none is named, whether the newest one games the
    reward. Raises as `choose_checkpoint`, `ConfigError` where the place is not a run, and `MissingFileError` where the
    checkpoint is not there.
    """
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.runs.choosing import choose_checkpoint, describe_better, require_checkpoint
    from rlcm_cli.runs.run import open_run
    from rlcm_cli.runs.staging import stage_report
    from rlcm_cli.store.locate import is_run

    if text is None and (is_url(place) or not is_run(Path(place))):
        return place, []
    with open_location(place, stage_report) as location:
        if not is_run(location.existing):
            raise ConfigError(
                f"--checkpoint {text}: {place} is not a run, which has checkpoints; name a run's folder, or leave "
                "--checkpoint out"
            )
        run = open_run(location.existing)
        if text is None:
            better = describe_better(run.layout, run.config)
            return place, [f"{place}: {better}"] if better else []
        found = choose_checkpoint(run.layout, run.config, text)
        if location.url is None:
            require_checkpoint(run.layout, found.number)
        folder = run.layout.checkpoint(found.number)
        return location.describe(folder), [f"{place}: {found}"] if found.why else []
