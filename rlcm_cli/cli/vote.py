"""`rlcm vote`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_run
from rlcm_cli.cli.location import Location, open_location
from rlcm_cli.cli.report import last_part
from rlcm_cli.cli.streams import announce, say
from rlcm_cli.wording import command, count

if TYPE_CHECKING:
    from rlcm_cli.runs.run import Run
    from rlcm_cli.voting.results import Count

EXTRA = ("fastapi", "httptools", "starlette", "uvicorn")
PORT = 8001


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("vote", epilog="Example: rlcm vote runs/a --checkpoint 0 --checkpoint 40")(vote_command)


def vote_command(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Run directories; with several, their images are compared, and the votes are kept in the first.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ],
    checkpoints: Annotated[
        list[int],
        typer.Option(
            "--checkpoint",
            metavar="N",
            help="Compare the held-out images of this checkpoint with others'; repeatable.",
            show_default="the first and the last evaluated; of several runs each one's last",
        ),
    ] = [],
    rollouts: Annotated[
        list[int],
        typer.Option(
            "--rollout",
            metavar="N",
            help="Compare the images within this rollout (its folder's number); repeatable.",
            show_default="the newest, if the run is trained for votes",
        ),
    ] = [],
    most: Annotated[
        int | None, typer.Option("--most", metavar="N", min=1, help="Maximum number of pairs to show to each voter.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE.csv",
            help="Also write the preferred pairs of the rollouts as a table, for objective.pairs.",
            dir_okay=False,
        ),
    ] = None,
    only_count: Annotated[
        bool, typer.Option("--count", help="Show no page: only count the votes and store the scores.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any free port.")] = PORT,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to bind; 0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print machine-readable lines on stdout: the page's address, and in the end the result.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
) -> None:
    """Show pairs of images in a browser, ask which is better, and turn the votes into a reward."""
    announce(", ".join(named), quiet=False, as_json=as_json)

    from rlcm_cli.cli.display import print_json
    from rlcm_cli.runs.run import open_run
    from rlcm_cli.runs.staging import stage_voting
    from rlcm_cli.voting.results import check_pairs_file, count_votes, write_pairs
    from rlcm_cli.voting.selection import list_contenders

    if pairs is not None:
        check_pairs_file(pairs)
    with ExitStack() as stack:
        fetch = partial(stage_voting, iterations=rollouts)
        locations = [
            stack.enter_context(open_location(name, fetch, publishes=place == 0)) for place, name in enumerate(named)
        ]
        runs = name_runs(named, locations)
        run = open_run(locations[0].existing)
        if not only_count:
            from rlcm_cli.voting.selection import select

            _serve(run, select(runs, rollouts, checkpoints), most, (host, port), as_json=as_json)
        counted = count_votes(run, list_contenders(runs))
        if pairs is not None:
            write_pairs(pairs, counted.pairs)
        if as_json:
            print_json({"run": named[0], **to_json(counted), "pairs_file": None if pairs is None else str(pairs)})
            return
        for line in describe(named[0], run, counted):
            say(line)
        if pairs is not None:
            say(f"{pairs}: {count(len(counted.pairs), 'preferred pair')} for `--set objective.pairs={pairs}`")


def name_runs(named: list[str], locations: list[Location]) -> dict[str, Run]:
    """Open the runs under names that tell them apart. Raises `ConfigError` where one is given twice."""
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.runs.run import open_run

    short = [last_part(name) for name in named]
    names = short if len({*short}) == len(short) and all(short) else named
    if len({location.existing.resolve() for location in locations}) < len(locations):
        raise ConfigError("a run is given twice; name each run once")
    return {name: open_run(location.existing) for name, location in zip(names, locations, strict=True)}


def _serve(run: Run, selection: Any, most: int | None, address: tuple[str, int], *, as_json: bool) -> None:
    """Show the page until it is stopped."""
    from rlcm_cli.errors import ConfigError

    try:
        from rlcm_cli.rewards.remote.server import is_loopback
        from rlcm_cli.voting.server import open_server
        from rlcm_cli.voting.session import Session
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise ConfigError(
            f"the voting page needs the package {error.name}, which is not installed; pip install 'rlcm[serve]'"
        ) from None
    from rlcm_cli.cli.display import print_json

    host, port = address
    session = Session(run.layout, selection.contests, selection.gallery, most)
    with open_server(session, host, port) as server:
        if as_json:
            print_json({"url": server.address, "pairs": session.planned, "images": session.images})
        else:
            images = count(session.images, "image")
            say(f"{selection.what}: {count(session.planned, 'pair')} of {images} for each voter")
            if not is_loopback(host):
                say("other machines can open the page; it is not encrypted, and whoever knows its address can vote")
            say(f"open {server.address}")
            say("Ctrl-C stops and counts; each vote is stored at once, and the same command resumes")
        typer.get_text_stream("stdout").flush()
        server.serve()


def describe(named: str, run: Run, counted: Count) -> Iterator[str]:
    """Yield the lines of a result."""
    from rlcm_cli.rewards.votes import VOTES

    if not counted.votes:
        yield f"{named}: no votes yet" + (f", {counted.skipped:,} skipped" if counted.skipped else "")
        return
    people, ties = count(counted.voters, "voter"), count(counted.ties, "tie")
    yield f"{named}: {count(counted.votes, 'vote')} by {people}, {ties}, {counted.skipped:,} skipped"
    if counted.agreement is not None:
        share, twos = counted.agreement
        yield f"two voters said the same of the same pair in {100 * share:.0f} % of {count(twos, 'case')}"
    for found in counted.comparisons:
        rate = found.rate
        won, low, high = (f"{100 * value:.1f}" for value in (rate.share, *rate.interval))
        yield (
            f"{found.contender.name} against {found.against.name}: {rate.verdict()}; it wins {won} % (95 % interval "
            f"{low} to {high} %) over {count(rate.prompts, 'prompt')}, {count(rate.comparisons, 'vote')}"
        )
    for own in counted.rollouts:
        images = count(own.images, "image")
        yield f"rollout {own.iteration}: {own.scored:,} of {images} have a score, the reward `{VOTES}`"
    trained = any(VOTES in task.rewards for task in run.config.joint_tasks().values())
    if counted.rollouts:
        yield f"next: {command('train', '--run', named) if trained else command('inspect', named, '--images', 'DIR')}"
    elif counted.comparisons:
        yield f"next: {command('report', named)}, which shows the scores of the held-out images"


def to_json(counted: Count) -> Mapping[str, Any]:
    """Return a result as plain values."""
    return {
        "votes": counted.votes,
        "ties": counted.ties,
        "skipped": counted.skipped,
        "voters": counted.voters,
        "agreement": None if counted.agreement is None else counted.agreement[0],
        "comparisons": [
            {
                "contender": found.contender.name,
                "against": found.against.name,
                "win_rate": found.rate.share,
                "interval": list(found.rate.interval),
                "prompts": found.rate.prompts,
                "votes": found.rate.comparisons,
            }
            for found in counted.comparisons
        ],
        "rollouts": {str(own.iteration): {"images": own.images, "scored": own.scored} for own in counted.rollouts},
        "pairs": len(counted.pairs),
    }
