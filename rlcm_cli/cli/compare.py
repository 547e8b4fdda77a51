"""`rlcm compare`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_reward, complete_run
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.streams import say

if TYPE_CHECKING:
    from rlcm_cli.cli.display import Display
    from rlcm_cli.report.compare.samples import ImageRow

COST_NAMES = {
    "queries": "queries",
    "wall_seconds": "wall time",
    "cpu_seconds": "processor time",
    "forwards": "model forwards",
}
WIDTH_OF_A_FILE = 240


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
            help="Run directories; runs that differ only by seed are treated as one method.",
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
    ] = 5,
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
            help="Also generate the same prompts and seeds with each method's first run, at several step counts.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="For --draw: auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto",
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Compare runs: reward over queries, time and model forwards, and the cost of reaching a target reward."""
    from rlcm_cli.cli.display import Display
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.report.compare.comparison import compare_runs
    from rlcm_cli.report.compare.picture import draw_comparison
    from rlcm_cli.report.compare.runs import open_compared
    from rlcm_cli.report.compare.samples import write_samples
    from rlcm_cli.report.compare.table import check_folder, tabulate, write_table
    from rlcm_cli.runs.staging import stage_report

    check_folder(out)
    named = [*parse_labels(labels), *(("", root) for root in roots)]
    if not named:
        raise ConfigError("no run given; pass run directories, for example rlcm compare runs/a runs/b")
    with ExitStack() as stack:
        locations = [(label, stack.enter_context(open_location(root, stage_report))) for label, root in named]
        runs_compared = [open_compared(location.existing, label=label) for label, location in locations]
        comparison = compare_runs(runs_compared, component=reward, window=window, clock=clock, target=reach)
        table = tabulate(comparison)
        display = Display(quiet=quiet, as_json=as_json)
        with tempfile.TemporaryDirectory() as scratch:
            runs = {method.label: method.runs[0].layout.root for method in comparison.methods}
            strips = draw_strips(runs, Path(scratch), device, display) if draw else []
            files = [write_table(table, out), draw_comparison(comparison, out)]
            if strips:
                files.append(write_samples(strips, out))
        if not as_json:
            show(table)
            for note in table["notes"]:
                say(f"note: {note}")
            say(f"{out}: {', '.join(file.name for file in files)}")
        display.finish({**table, "files": [str(file) for file in files]})


def draw_strips(runs: Mapping[str, Path], folder: Path, device: str, display: Display) -> list[ImageRow]:
    """Generate the same prompts with the newest checkpoint of each run, method → run directory."""
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
    """Print the numbers, one column per method; for several seeds, the lowest and the highest below the mean."""
    from rich.table import Table

    from rlcm_cli.cli.tables import print_rows
    from rlcm_cli.cli.terminal import open_console

    shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    shown.add_column(no_wrap=True)
    for method in table["methods"]:
        shown.add_column(method["label"], justify="right", overflow="fold")
    for name, cells in _lines(table):
        shown.add_row(name, *cells)
    console = open_console(markup=False, highlight=False)
    if not console.is_terminal:  # a file has no width, and rich would fold at 80
        console = open_console(markup=False, highlight=False, width=WIDTH_OF_A_FILE)
    console.print(_head(table))
    unbounded = console.options.update(width=WIDTH_OF_A_FILE)
    if console.measure(shown, options=unbounded).maximum <= console.width:
        console.print(shown)
        return
    for number, method in enumerate(table["methods"]):
        console.print(f"\n{method['label']}")
        print_rows(console, [(name, cells[number].replace("\n", " ")) for name, cells in _lines(table)])


def _head(table: Mapping[str, Any]) -> str:
    windows = {window for method in table["methods"] for window in method["windows"]}
    parts = [f"reward: {table['reward']}"]
    if max(windows) > 1:
        said = " to ".join(map(str, sorted({min(windows), max(windows)})))
        parts.append(f"first, best and final are means of {said} iterations")
    if any(len(method["seeds"]) > 1 for method in table["methods"]):
        parts.append("for several seeds, the mean of their values (lowest to highest)")
    return "; ".join(parts)


def _lines(table: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    from rlcm_cli.report.run.levels import format_level

    methods = table["methods"]
    yield "seeds × iterations", [f"{len(method['seeds'])} × {method['iterations']}" for method in methods]
    for key in ("first", "best", "final"):
        yield f"{key} reward", [_spread(method[key]) for method in methods]
    for key, name in (("held_out_seeds", "held-out seeds"), ("held_out_prompts", "held-out prompts")):
        for when in ("before", "after"):
            found = [(method["evaluated"] or {}).get(key) for method in methods]
            if any(found):
                yield f"{name}, {when}", [_spread(values and values[when]) for values in found]
    for cost in table["costs"]:
        reached = [method["reach"][cost] for method in methods]
        yield f"{COST_NAMES[cost]} to {format_level(table['target'])}", [_price(cost, values) for values in reached]
        if sum(values["price"] is not None for values in reached) > 1:
            times = [values["speed_up"] for values in reached]
            yield (
                f"  speed-up over {table['slowest'][cost]}",
                ["–" if value is None else f"{value:.{1 if value < 100 else 0}f}" for value in times],
            )
        yield f"{COST_NAMES[cost]} in all", [_amount(cost, method["total"][cost]["mean"]) for method in methods]


def _spread(values: Mapping[str, float] | None) -> str:
    from rlcm_cli.report.run.levels import format_level

    if values is None:
        return "–"
    if values["lowest"] == values["highest"]:
        return format_level(values["mean"])
    return f"{format_level(values['mean'])}\n({format_level(values['lowest'])} to {format_level(values['highest'])})"


def _price(cost: str, values: Mapping[str, Any]) -> str:
    seeds = values["of_each_seed"]
    reached = [price for price in seeds if price is not None]
    if not reached:
        return "never"
    own = _amount(cost, reached[0])
    if len(reached) > 1:
        own = f"{_amount(cost, min(reached))} to {_amount(cost, max(reached))}"
    if len(reached) < len(seeds):
        return f"{len(reached)} of {len(seeds)} reached it\n({own})"
    return _amount(cost, values["price"]) + (f"\n({own})" if len(seeds) > 1 else "")


def _amount(cost: str, value: float) -> str:
    if not cost.endswith("seconds"):
        return f"{value:,.0f}"
    size, unit = next((unit for unit in ((3600, "h"), (60, "min")) if value >= 2 * unit[0]), (1, "s"))
    return f"{value / size:.1f} {unit}"
