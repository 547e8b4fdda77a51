"""The `rlcm` program: its commands, and what becomes of an error."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from rlcm_cli import __version__
from rlcm_cli.cli import evaluate, generate, inspect, loop, quarantine, sample, score, tasks, train
from rlcm_cli.errors import RlcmError

app = typer.Typer(
    name="rlcm",
    help="Fine-tune few-step text-to-image models for a reward, by reinforcement learning.",
    epilog="Start with: rlcm loop --task compression · Any command takes --debug, which shows tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode="rich",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlcm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    pass


for module in (loop, sample, score, train, generate, evaluate, tasks, inspect, quarantine):
    module.register(app)


def main() -> None:
    """Run the command line: an `RlcmError` is one line and its exit code, any other exception a traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        status = app(args=arguments, standalone_mode=False)
    except RlcmError as error:
        if debug:
            raise
        _complain(str(error))
        status = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        _complain("interrupted; nothing is lost: run the same command again to go on")
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except BrokenPipeError:  # the reader of our output, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)


def _complain(message: str) -> None:
    print(f"rlcm: {message}", file=sys.stderr)
