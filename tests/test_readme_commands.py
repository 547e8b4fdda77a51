"""The commands of README and docs do what they say: each is run, or is listed here with the reason why it is not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
from markdown_commands import Shown, read_commands, read_files, read_page

from rlcm_cli.cli.app import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RUN_PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""Every command of these is run, in this order."""
PAGES = [*RUN_PAGES, *sorted((ROOT / "examples").glob("*/README.md"))]
PROGRAM = typer.main.get_command(app)
LONGEST = 1200  # seconds; a loaded machine starts a process slowly

SMALL = (
    "--samples 24 --steps 2 --set sample.batch_size=24 --set train.minibatch_size=24 --set evaluate.prompts=2 "
    "--set evaluate.images_per_prompt=2"
)
"""Appended to what starts a run, which else takes minutes; 24 images are whole groups of 1, 2, 3, 4, 6 or 8."""


LENT = "runs/lent"
"""A small run. Where a page speaks of a run before it makes it, or of one that takes a GPU, a copy of it is there."""
FILES = {"prompts.csv": "prompt,seed\na cat,1\na dog,2\n", "mine.toml": 'task = "compression"\n'}
"""Files that the pages speak of and one has, or that they write by a redirection."""


@dataclass(frozen=True)
class Rule:
    """What is done with the commands that a pattern finds, the first that does."""

    pattern: str
    how: str
    """`run`; `make`, of whose target the recipe is looked at and run; `parse`, for the reason given."""
    append: str = ""
    """Options after those of the page."""
    reason: str = ""


RULES = (
    Rule(r"^make run\b", "make", append=f"--iterations 1 {SMALL}"),
    Rule(r"^make (test|test-all|check|setup)\b", "parse", reason="it would run these tests from within themselves"),
    Rule(r"^python -m venv\b", "parse", reason="an environment is filled from the package index"),
    Rule(r"^python -m examples\.", "parse", reason="a measurement of minutes to hours; its README has the results"),
    Rule(r"^rlcm serve-reward\b", "parse", reason="it serves until it is stopped; examples/reward_server is run"),
    Rule(r"^rlcm loop .*--model [\w.-]+/.*\bsampler\.", "parse", reason="only a model of the hub says what sampler"),
    Rule(r"^rlcm (loop|sample) .*(--model [\w.-]+/|distilled_lora=)", "run", "--dry-run", "weights of the model hub"),
    Rule(r"^rlcm loop .*sampler\.window=", "run", "--dry-run", "it names calls of the preset's own number of steps"),
    Rule(r"^rlcm loop .*https?://", "run", "--dry-run", "a server that is elsewhere"),
    Rule(r"^rlcm loop .*--executor ray", "run", "--dry-run", "a Ray cluster; tests/ray/test_ray_loop.py has one"),
    Rule(r"^rlcm \S+ .*(\b(s3|gs|hf)://|--hub\b)", "parse", reason="an account elsewhere; tests/cli have a server"),
    Rule(r"^rlcm .*(…|\b(NAME|HOST|OWNER|COMMIT|BUCKET|FILE|RUN)\b)", "parse", reason="a placeholder stands there"),
    Rule(r"^rlcm loop (?!.*--(task|config)\b).*--run\b", "run"),
    Rule(r"^rlcm loop\b.*--dry-run", "run"),
    Rule(r"^rlcm loop\b", "run", append=f"--iterations 2 {SMALL}"),
    Rule(r"^rlcm sample .*--task", "run", append=SMALL),
    Rule(r"^rlcm watch\b", "run", append="--once"),
    Rule(r"^rlcm bench .*--(model|architecture)\b", "parse", reason="a model of gigabytes"),
    Rule(r"^rlcm bench\b", "run", append="--seconds 0 --batch 1 --steps 2"),
    Rule(r"^rlcm (doctor|generate) .*--model [\w.-]+/", "parse", reason="a model of the hub"),
    Rule(r"^rlcm (sample|score|train|generate|evaluate|compare|report|export)\b", "run"),
    Rule(r"^rlcm vote\b(?!.*--count)", "parse", reason="it serves until it is stopped; tests/voting have a browser"),
    Rule(r"^rlcm vote\b", "run"),
    Rule(r"^rlcm (tasks|rewards|inspect|quarantine|doctor|runs|prune)\b", "run"),
    Rule(r"^rlcm --(install|show)-completion\b", "parse", reason="it changes the shell of whoever calls it"),
    Rule(r"^rlcm (-h|--help|--version)", "run"),
)


def find_rule(command: Shown) -> Rule | None:
    return next((rule for rule in RULES if re.search(rule.pattern, command.text)), None)


def parse(command: Shown) -> None:
    """Take a command of `rlcm` apart as the program would, without running it; raises what the program would say."""
    name, *arguments = command.words[1:] or [""]
    if name.startswith("-") or not name:
        PROGRAM.make_context("rlcm", list(command.words[1:]), resilient_parsing=True)
        return
    assert name in PROGRAM.commands, f"there is no command `rlcm {name}`"
    if not command.inline:
        PROGRAM.commands[name].make_context(name, arguments)
        return
    # A sentence may name a command without what it needs, and a number N.
    known = {flag for parameter in params_of(name) for flag in (*parameter.opts, "--help", "-h")}
    unknown = sorted(set(command.options) - known)
    assert not unknown, f"`rlcm {name}` has no option {', '.join(unknown)}"


def params_of(name: str) -> list:
    """Parameters of a command, with those that it derives from the settings."""
    command = PROGRAM.commands[name]
    return command.get_params(typer.Context(command))


def show(page: Path, command: Shown) -> str:
    return f"{page.relative_to(ROOT)}:{command.line}: {command.text}"


def blocks(page: Path) -> list[Shown]:
    return [command for command in read_page(page) if not command.inline]


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_known_to_this_test(page):
    assert [show(page, command) for command in blocks(page) if find_rule(command) is None] == []


def test_commands_are_found_where_they_are():
    assert len(blocks(README)) >= 5
    assert len(replay()) > 40


def test_the_readme_lists_every_command():
    rows = re.findall(r"^\| `rlcm ([a-z-]+)\b[^`]*` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(PROGRAM.commands)


def test_what_is_not_run_has_a_reason():
    assert [rule.pattern for rule in RULES if "--dry-run" in rule.append.split() or rule.how == "parse"] == [
        rule.pattern for rule in RULES if rule.reason
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page):
    mistakes = []
    for command in read_page(page):
        if command.words[0] != "rlcm":
            continue
        try:
            parse(command)
        except (Exception, SystemExit) as error:
            mistakes.append(f"{show(page, command)}: {getattr(error, 'message', None) or error}")
    assert mistakes == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_targets_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    mistakes = []
    for command in read_page(page):
        program, *words = command.words
        if program == "make" and not command.inline:
            known = words[0] in targets
        elif program == "python" and len(words) > 1 and words[0] == "-m" and words[1].startswith("examples."):
            module = ROOT / f"{words[1].replace('.', '/')}.py"
            source = module.read_text(encoding="utf-8") if module.exists() else ""
            known = all(f'"{option}"' in source for option in command.options[1:])
            known &= bool(source)
        elif program == "python" and words and words[0].endswith(".py"):
            known = (ROOT / words[0]).exists()
        else:
            continue
        if not known:
            mistakes.append(show(page, command))
    assert mistakes == []


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*/*.s*h")), ids=lambda path: path.parent.name)
def test_options_of_the_scripts_exist(script):
    text = re.sub(r"\\\n\s*", " ", script.read_text(encoding="utf-8"))
    known = {option for name in PROGRAM.commands for item in params_of(name) for option in item.opts}
    for name, rest in re.findall(r"\brlcm ([a-z-]+)\b([^\n`]*)", text):
        assert name in PROGRAM.commands
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known, script


# Run, in the order of the pages, in one folder


def replay() -> list[tuple[str, Shown, Rule]]:
    found = [(page, command, find_rule(command)) for page in RUN_PAGES for command in blocks(page)]
    return [
        (str(page.relative_to(ROOT)), command, rule)
        for page, command, rule in found
        if rule is not None and rule.how != "parse"
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands are run, with the files that the pages tell one to write."""
    folder = tmp_path_factory.mktemp("pages")
    written = [read_files(page.read_text(encoding="utf-8")) for page in RUN_PAGES]
    for files in (FILES, *written):
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command", "rule"), replay(), ids=lambda part: getattr(part, "text", None))
def test_a_command_runs(folder, page, command, rule):
    words = list(command.words)
    if rule.how == "make":
        words = recipe(words)
    assert words[0] == "rlcm", page
    for run in missing_runs(folder, words):
        lend(folder, run)
    call(folder, *words[1:], *shlex.split(rule.append))


def missing_runs(folder: Path, words: list[str]) -> list[Path]:
    """List the runs that a command reads, as it starts none, and that are not there."""
    if "--task" in words or "--config" in words:
        return []
    named = {found[0] for word in words if (found := re.match(r"runs/[\w.-]+", word))}
    return [folder / name for name in sorted(named) if not (folder / name).exists()]


def lend(folder: Path, wanted: Path) -> None:
    """Put the small run where a command reads another."""
    if not (folder / LENT).exists():
        call(folder, *shlex.split(f"loop --task compression --seed 1 --run {LENT} --iterations 2 {SMALL}"))
    shutil.copytree(folder / LENT, wanted)


def call(folder: Path, *words: str) -> None:
    """Run `rlcm` in a folder, in a process of its own; it must succeed."""
    ended = subprocess.run(
        [sys.executable, "-m", "rlcm_cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LONGEST,
    )
    assert ended.returncode == 0, ended.stdout[-2000:]


def recipe(words: list[str]) -> list[str]:
    """Return the command of `rlcm` that a make target ends with."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    said = subprocess.run([make, "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    last = shlex.split(said.splitlines()[-1])
    return [Path(last[0]).stem, *last[1:]]


# The extraction itself


def test_commands_are_found_in_a_page():
    page = (
        "Say `rlcm tasks [NAME]` or `--task x`, and\n`rlcm loop\n--task a`.\n\n"
        "    $ .venv/bin/rlcm loop --task compression \\\n        --seed 1   # and again\n"
        "    KEY=… heavy/bin/rlcm serve-reward NAME && rlcm train --run r | head\n"
        "    prompts ─▶ rlcm sample\n\n"
        "```bash\nmake run > log\n```\n\n```python\nrlcm loop\n```\n"
    )
    found = read_commands(page)
    assert [(command.text, command.line) for command in found if not command.inline] == [
        ("rlcm loop --task compression --seed 1", 5),
        ("rlcm serve-reward NAME", 7),
        ("rlcm train --run r", 7),
        ("make run", 11),
    ]
    assert [command.text for command in found if command.inline] == ["rlcm tasks NAME", "rlcm loop --task a"]
    assert found[0].options == ["--task", "--seed"]


def test_files_are_found_in_a_page():
    page = "```python\n# a.py, for --reward a.py:f\nx = 1\n```\n\n```\n# no file\n```\n"
    assert read_files(page) == {"a.py": "x = 1\n"}
