"""`rlcm compare`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_reward, complete_run
from rlcm_cli.cli.location import expand_folder, open_location
from rlcm_cli.cli.streams import print_data, say
from rlcm_cli.report.run.levels import WINDOW

if TYPE_CHECKING:
    from rich.console import Console

    from rlcm_cli.cli.display import Display
    from rlcm_cli.report.compare.samples import ImageRow

WIDTH_OF_A_FILE = 10_000
"""Columns; a file has no width, and rich would fold at 80."""
Form = Literal["table", "md", "csv", "latex", "json"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("compare", epilog="Example: rlcm compare runs/lcm-1 runs/lcm-2 runs/ddpo-1 runs/ddpo-2 --time cpu")(
        compare_command
    )


def compare_command(
    roots: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Runs, or folders of runs such as `rlcm loop --seed 1,2,3` makes; runs that differ only by seed are "
            "one method.",
            autocompletion=complete_run,
        ),
    ] = [],
    labels: Annotated[
        list[str],
        typer.Option(
            "--label",
            metavar="NAME=RUN[,RUN]",
            help="Name of a method and its runs, one per seed; repeatable.",
            show_default=False,
        ),
    ] = [],
    reach: Annotated[
        float | None,
        typer.Option(
            "--reach",
            metavar="X",
            help="Report the cost of reaching this reward.",
            show_default="the highest that all runs reach",
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            metavar="NAME",
            help="Compare only this reward.",
            show_default="the training reward",
            autocompletion=complete_reward,
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option("--smooth", metavar="N", min=1, help="Iterations to average, at most half of a run."),
    ] = WINDOW,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option("--time", help="Wall or processor time; on a shared machine the latter is fairer."),
    ] = "wall",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the figure and the numbers.", file_okay=False)
    ] = Path("comparison"),
    draw: Annotated[
        bool,
        typer.Option(
            "--draw",
            help="Also generate the same prompts and seeds with the base model, if all runs have the same, and with "
            "each method's first run, at several step counts.",
        ),
    ] = False,
    form: Annotated[
        Form,
        typer.Option(
            "--format", help="How to print the numbers; csv and json have all digits.", rich_help_panel=o.OUTPUT
        ),
    ] = "table",
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="For --draw: auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto",
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Compare runs: rewards with their interval over seeds, held-out rewards, and the cost of reaching a reward."""
    from rlcm_cli.cli.display import Display
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.report.compare.comparison import compare_runs
    from rlcm_cli.report.compare.picture import draw_comparison
    from rlcm_cli.report.compare.runs import open_compared
    from rlcm_cli.report.compare.samples import write_samples
    from rlcm_cli.report.compare.table import check_folder, tabulate, write_table
    from rlcm_cli.runs.staging import stage_report

    if as_json and form != "table":
        raise ConfigError(f"--json and --format {form} both choose what is printed; leave one out")
    check_folder(out)
    named = list(find_compared([*parse_labels(labels), *(("", root) for root in roots)]))
    if not named:
        raise ConfigError("no run given; pass run directories, for example rlcm compare runs/a runs/b")
    with ExitStack() as stack:
        locations = [(label, stack.enter_context(open_location(root, stage_report))) for label, root in named]
        runs_compared = [open_compared(location.existing, label=label) for label, location in locations]
        comparison = compare_runs(runs_compared, component=reward, window=window, clock=clock, target=reach)
        table = tabulate(comparison)
        display = Display(quiet=quiet, as_json=as_json or form != "table")  # stdout is for a program
        with tempfile.TemporaryDirectory() as scratch:
            runs = {method.label: method.runs[0].layout.root for method in comparison.methods}
            strips = draw_strips(runs, Path(scratch), device, display) if draw else []
            files = [write_table(table, out), draw_comparison(comparison, out)]
            if strips:
                files.append(write_samples(strips, out))
        if as_json:
            display.finish({**table, "files": [str(file) for file in files]})
            return
        if form == "table":
            show(table)
        else:
            print_data(write_as(table, form))
        if form in ("table", "csv"):  # the others hold the notes
            for note in table["notes"]:
                say(f"note: {note}", err=form != "table")
        if form == "table" or not quiet:
            say(f"{out}: {', '.join(file.name for file in files)}", err=form != "table")


def write_as(table: Mapping[str, Any], form: Form) -> str:
    """Write a comparison in one of the formats for other programs."""
    from rlcm_cli.report.compare.formats import write_csv, write_latex, write_markdown
    from rlcm_cli.report.compare.table import write_json

    return {"md": write_markdown, "csv": write_csv, "latex": write_latex, "json": write_json}[form](table)


def find_compared(named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Replace each folder that is no run but holds some by these: (label, run)."""
    for label, root in named:
        yield from ((label, run) for run in expand_folder(root))


def draw_strips(runs: Mapping[str, Path], folder: Path, device: str, display: Display) -> list[ImageRow]:
    """Generate the same prompts with a shared base model and the newest checkpoints, method → run directory."""
    from rlcm_cli.pictures.compare import draw_samples, plan_samples
    from rlcm_cli.report.compare.samples import ImageRow

    rows = plan_samples(runs, folder)
    display.follow(draw_samples(rows, device))
    return [ImageRow(row.method, row.drawing.sample.steps, row.drawing.prompts, row.folder) for row in rows]


def parse_labels(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Read `NAME=RUN[,RUN]` options: (label, run)."""
    from rlcm_cli.errors import ConfigError

    for text in options:
        label, equals, runs = text.partition("=")
        if not (label.strip() and equals and all(runs.split(","))):
            raise ConfigError(
                f"--label {text}: write NAME=RUN or NAME=RUN,RUN, for example --label DDPO=runs/a,runs/b"
            )
        yield from ((label.strip(), root) for root in runs.split(","))


def show(table: Mapping[str, Any]) -> None:
    """Print the numbers: a small table for each quantity, a row a seed and a row for their mean."""
    from rlcm_cli.cli.terminal import open_console
    from rlcm_cli.report.compare.blocks import arrange, define_terms, name_speed_ups
    from rlcm_cli.report.compare.formats import list_texts

    console = open_console(markup=False, highlight=False)
    if not console.is_terminal:  # a file has no width, and rich would fold at 80
        console = open_console(markup=False, highlight=False, width=WIDTH_OF_A_FILE)
    for line in define_terms(table):
        console.print(line)
    for block in arrange(table):
        _print_block(console, block.title, ("method", "seed", *block.columns.values()), list_texts(block))
    lines = name_speed_ups(table)
    if lines:
        console.print()
    for line in lines:
        console.print(line)
    if table["settings"]:
        labels = [method["label"] for method in table["methods"]]
        rows = [[row["setting"], *(row["values"][label] for label in labels)] for row in table["settings"]]
        _print_block(console, "Settings that differ", ("setting", *labels), rows)
    if table["notes"]:
        console.print()


def _print_block(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table below an empty line; if the window is too narrow for it, the cells of a row below each other."""
    from rich.table import Table

    from rlcm_cli.cli.tables import print_rows

    console.print(f"\n{title}")
    shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, name in enumerate(header):
        shown.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    if console.measure(shown, options=console.options.update(width=WIDTH_OF_A_FILE)).maximum <= console.width:
        console.print(shown)
        return
    for number, row in enumerate(rows):
        if number:
            console.print()
        print_rows(console, [("", name, cell) for name, cell in zip(header, row, strict=True) if cell])
