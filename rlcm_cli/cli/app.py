"""The `rlcm` program: its commands, and how errors are reported."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from rlcm_cli import __version__
from rlcm_cli.cli import (
    bench,
    compare,
    doctor,
    evaluate,
    export,
    generate,
    inspect,
    loop,
    prune,
    quarantine,
    report,
    rewards,
    runs,
    sample,
    score,
    serve_reward,
    tasks,
    train,
    vote,
    watch,
)
from rlcm_cli.cli.streams import clean, fault_of, prepare_streams, silence
from rlcm_cli.errors import RlcmError, StoreError
from rlcm_cli.wording import expand_home, to_line

INTERRUPTED = 130
OUTPUT_CLOSED = 1
FAILED_AFTER_ANOTHER = 1
UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""Error numbers of a stream whose reader has gone, or whose disk is full or gone."""
SYSTEM_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""Faults of a disk or of permissions: wherever one occurs, it is not our bug."""

FORMER_OPTIONS = {"--watch": "--monitor", "--policy": "--sampler"}
"""What options were called before."""

# click's: newer typers carry their own click, so `import click` would give a different class.
UsageError: type[Any] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="rlcm",
    help="Fine-tune few-step text-to-image models for a reward by reinforcement learning.",
    epilog="Example: rlcm loop --task compression",
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
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; accepted anywhere on the command line.")
    ] = False,
) -> None:
    pass


for module in (
    loop,
    sample,
    score,
    train,
    generate,
    evaluate,
    export,
    compare,
    report,
    vote,
    watch,
    runs,
    prune,
    tasks,
    rewards,
    serve_reward,
    inspect,
    quarantine,
    bench,
    doctor,
):
    module.register(app)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line: an `RlcmError` is one line and its exit code, any other exception a traceback."""
    prepare_streams()
    _show_remarks()
    with _noting_interrupts() as interrupts, _reporting_termination():
        try:
            status = _run(argv)
        except Exception:
            # Ctrl-C inside native code, such as that of safetensors, surfaces as another kind of error.
            if interrupts:
                status = INTERRUPTED
            elif _reports_for_its_job():
                raise
            else:
                status = FAILED_AFTER_ANOTHER
    if status == INTERRUPTED:
        _complain("interrupted; nothing is lost: rerun the same command to resume")
    sys.exit(status)


@functools.cache
def _program() -> Callable[..., Any]:
    """Build all commands from their functions, once per process, because it takes a tenth of a second."""
    return typer.main.get_command(app)


def _run(argv: Sequence[str] | None) -> int:
    given = sys.argv[1:] if argv is None else argv
    # `--debug` may also stand after a command, where typer would look for an option of the command.
    arguments = [argument for argument in given if argument != "--debug"]
    debug = len(arguments) < len(given)
    try:
        status = _program()(args=expand_paths(arguments), prog_name="rlcm", standalone_mode=False)
        sys.stdout.flush()
    except RlcmError as error:
        if debug:
            raise
        _complain(str(error))
        return error.exit_code
    except UsageError as error:
        if debug:
            raise
        if arguments:
            former = FORMER_OPTIONS.get(getattr(error, "option_name", ""))
            if former:
                error.possibilities = [former]
            known = {command.name for command in app.registered_commands}
            named = next((f"rlcm {word}" for word in arguments if word in known), "rlcm")
            message = " ".join(error.format_message().split()).rstrip(".")
            _complain(
                f"{message[0].lower()}{message[1:]} (see `{error.ctx.command_path if error.ctx else named} --help`)"
            )
        else:  # click makes it an error whose message is the help
            error.show()
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        if debug:
            raise
        return _end_by_the_system(error)
    return int(status or 0)  # newer typers turn Ctrl-C into INTERRUPTED themselves


def expand_paths(arguments: Sequence[str]) -> list[str]:
    """Expand a leading `~` in each argument and in each value after `--option=`; leave prompts unchanged.

    Raises `ConfigError`.
    """
    expanded: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if before == "--prompt" or option == "--prompt":
            expanded.append(argument)
        elif equals and re.fullmatch(r"--[a-z-]+", option):
            expanded.append(f"{option}={expand_home(value)}")
        else:
            expanded.append(expand_home(argument))
    return expanded


def _end_by_the_system(error: OSError) -> int:
    """Return the exit status if a standard stream cannot be written, or if a disk or permissions are at fault.

    Re-raises any other error.
    """
    # An error with a file name is not from a stream; probing a stream prints an empty line to it.
    if error.errno in UNWRITABLE and error.filename is None:
        faulty = next((stream for stream in (sys.stdout, sys.stderr) if fault_of(stream) is not None), None)
        if faulty is not None:
            silence(faulty)
            if not isinstance(
                error, BrokenPipeError
            ):  # a reader that has gone, such as `head`, has seen what it wanted
                _complain(f"cannot print: {error.strerror}")
            return OUTPUT_CLOSED
    if error.errno not in SYSTEM_ERRORS:
        raise error
    named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    _complain(f"{named}{error.strerror}; check the permissions and the disk it is on")
    return StoreError.exit_code


@contextlib.contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Yield a list to which each Ctrl-C adds its signal before being raised as usual."""
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _reporting_termination() -> Iterator[None]:
    """On SIGTERM, which Slurm sends before a job's time is up, print that nothing is lost, then terminate as usual.

    If a launcher has started several processes, they handle the signal themselves.
    """
    own = os.getpid()

    def tell(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:  # not in a forked child
            os.write(2, b"rlcm: terminated; nothing is lost: rerun the same command to resume\n")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if "WORLD_SIZE" in os.environ:
        yield
        return
    previous = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _complain(message: str) -> None:
    if _reports_for_its_job():
        try:
            print(f"rlcm: {to_line(message)}", file=sys.stderr, flush=True)
        except OSError:  # nobody is reading; the exit status says enough
            silence(sys.stderr)


class _Remarks(logging.Handler):
    """Prints warnings about a model, LoRA or reward that loaded successfully."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.environ.get("RANK", "0") == "0":  # each process of a job loads the same files
            print(clean(f"warning: {record.getMessage()}"), file=sys.stderr, flush=True)


def _show_remarks() -> None:
    logger = logging.getLogger("rlcm_cli")
    if not any(isinstance(handler, _Remarks) for handler in logger.handlers):
        logger.addHandler(_Remarks())


def _reports_for_its_job() -> bool:
    """Return whether to print an error: of several processes in a job, only the first to fail does."""
    if "WORLD_SIZE" not in os.environ:  # without a launcher, no import is needed
        return True
    from rlcm_cli.processes.join import is_first_to_complain

    return is_first_to_complain()
