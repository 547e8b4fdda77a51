"""Text from files cannot command a terminal or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import string

import pytest
from command_line import rlcm, succeed, write_settings
from rich.table import Table
from rich.text import Text

from rlcm_cli.cli.display import print_json
from rlcm_cli.cli.streams import say
from rlcm_cli.cli.terminal import open_console
from rlcm_cli.wording import to_line

HOSTILE = "a\x1b]0;x\x07\x9b2Jb\u202ec\rd\x7fe"
CLEAN = "a�]0;x��2Jb�c�d�e"


def test_lines_and_consoles_are_cleaned(capsys):
    say(f"{HOSTILE}\tä→\n2")
    assert capsys.readouterr().out == f"{CLEAN}\tä→\n2\n"
    stream = io.StringIO()
    console = open_console(file=stream, force_terminal=True, width=200, color_system="standard", highlight=False)
    console.print(HOSTILE, markup=False)
    console.print(Text(HOSTILE, style="red"))
    table = Table(box=None)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    printed = stream.getvalue()
    assert printed.count(CLEAN) == 3
    assert printed.count(CLEAN.replace("x�", "x").replace("c�", "c")) == 1  # rich drops some of a `Text` by itself
    assert "\x1b[31m" in printed  # the colour is rich's own
    assert not {"\x9b", "\x07", "\u202e", "\r", "\x7f"} & set(printed)
    assert "\x1b]" not in printed


def test_errors_are_cleaned(capsys):
    outcome = rlcm(capsys, "generate", "--lora", f"x{HOSTILE}", "--prompt", "cat")
    assert outcome.status == 2
    shown = to_line(f"x{HOSTILE}")
    assert outcome.out == f"loading {shown} …\n"
    assert f"--lora {shown}: " in outcome.err
    assert not {*HOSTILE} - {*string.printable} & {*outcome.err, *outcome.out}


def test_json_escapes_what_a_terminal_obeys(capsys):
    print_json({"prompt": HOSTILE})
    line = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\u202e", "\x7f"} & set(line)
    assert json.loads(line) == {"prompt": HOSTILE}


@pytest.mark.parametrize("prompt", ["=cmd|' /C calc'!A0", "+1+1", "@SUM(1)", "-2"])
def test_a_table_of_images_computes_nothing(capsys, tiny_lcm, tmp_path, prompt):
    (tmp_path / "p.txt").write_text(f"{prompt}\n")
    settings = write_settings(tmp_path, tiny_lcm, prompts={"held_out_fraction": 0.0}, sample={"steps": 2})
    run = tmp_path / "run"
    succeed(capsys, "sample", "--config", settings, "--prompts", tmp_path / "p.txt", "--run", run)
    succeed(capsys, "inspect", run, "--images", tmp_path / "images")
    with (tmp_path / "images" / "images.csv").open(encoding="utf-8") as file:
        assert {row["prompt"] for row in csv.DictReader(file)} == {f"'{prompt}"}
