"""The `rlcm` program: its commands, and what becomes of an error."""

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
    quarantine,
    report,
    rewards,
    sample,
    score,
    serve_reward,
    tasks,
    train,
    watch,
)
from rlcm_cli.cli.streams import clean, fault_of, prepare_streams, silence
from rlcm_cli.errors import RlcmError, StoreError
from rlcm_cli.wording import expand_home, to_line

INTERRUPTED = 130
OUTPUT_CLOSED = 1
FAILED_AFTER_ANOTHER = 1
UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""Error numbers of a stream whose reader has left, or whose disk is full or gone."""
OF_THE_SYSTEM = (
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
"""Faults of a disk or of permissions: whoever meets one, and wherever, it is not a bug of ours."""

FORMER_OPTIONS = {"--watch": "--monitor", "--policy": "--sampler"}
"""What options were called before."""

# click's: newer typers carry a click of their own, so that `import click` would give another class.
UsageError: type[Any] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="rlcm",
    help="Fine-tune few-step text-to-image models for a reward, by reinforcement learning.",
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
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the command line.")
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
    watch,
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
    with _noting_interrupts() as interrupts, _telling_of_termination():
        try:
            status = _run(argv)
        except Exception:
            # Ctrl-C inside native code, safetensors' say, comes out as an error of another kind.
            if interrupts:
                status = INTERRUPTED
            elif _speaks_for_its_job():
                raise
            else:
                status = FAILED_AFTER_ANOTHER
    if status == INTERRUPTED:
        _complain("interrupted; nothing is lost: run the same command again to go on")
    sys.exit(status)


@functools.cache
def _program() -> Callable[..., Any]:
    """Build all commands from their functions, which takes a tenth of a second, once in a process."""
    return typer.main.get_command(app)


def _run(argv: Sequence[str] | None) -> int:
    given = sys.argv[1:] if argv is None else argv
    # `--debug` may stand after a command, too, where typer would look for an option of the command.
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
    return int(status or 0)  # newer typers turn Ctrl-C into INTERRUPTED by themselves


def expand_paths(arguments: Sequence[str]) -> list[str]:
    """Replace the `~` at the front of each argument, and of each value after `--option=`; a prompt is left as it is.

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
    """Return the exit status where a standard stream cannot be written, or a disk or permissions are at fault.

    Raises any other error again.
    """
    # What fails with the name of a file is no stream, which would get an empty line to find out.
    if error.errno in UNWRITABLE and error.filename is None:
        faulty = next((stream for stream in (sys.stdout, sys.stderr) if fault_of(stream) is not None), None)
        if faulty is not None:
            silence(faulty)
            if not isinstance(error, BrokenPipeError):  # a reader that has left, `head` say, has seen what it wanted
                _complain(f"cannot print: {error.strerror}")
            return OUTPUT_CLOSED
    if error.errno not in OF_THE_SYSTEM:
        raise error
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    _complain(f"{place}{error.strerror}; check the permissions, and the disk that it is on")
    return StoreError.exit_code


@contextlib.contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Give a list to which each Ctrl-C adds its signal, before it is raised as ever."""
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
def _telling_of_termination() -> Iterator[None]:
    """Say on SIGTERM, as Slurm sends it before a job's time is up, that nothing is lost, and end by it as ever.

    Where a launcher has started several processes it sends the signal, and they meet it by themselves.
    """
    own = os.getpid()

    def tell(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:  # not in a child that was forked
            os.write(2, b"rlcm: terminated; nothing is lost: run the same command again to go on\n")
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
    if _speaks_for_its_job():
        try:
            print(f"rlcm: {to_line(message)}", file=sys.stderr, flush=True)
        except OSError:  # nobody can be told, and the exit status says enough
            silence(sys.stderr)


class _Remarks(logging.Handler):
    """Prints what loading a model, LoRA or reward has to say although it succeeded."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.environ.get("RANK", "0") == "0":  # each process of a job loads the same files
            print(clean(f"warning: {record.getMessage()}"), file=sys.stderr, flush=True)


def _show_remarks() -> None:
    logger = logging.getLogger("rlcm_cli")
    if not any(isinstance(handler, _Remarks) for handler in logger.handlers):
        logger.addHandler(_Remarks())


def _speaks_for_its_job() -> bool:
    """Tell whether an error is to be shown: of several processes of a job, that of the first one to fail."""
    if "WORLD_SIZE" not in os.environ:  # without a launcher, nothing is imported for it
        return True
    from rlcm_cli.processes.join import is_first_to_complain

    return is_first_to_complain()
