"""What a user sees before anything runs: help, version, usage mistakes, presets."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
import typer.main
from command_line import refuse, rlcm, succeed

from rlcm_cli import __version__
from rlcm_cli.cli.app import app
from rlcm_cli.config import task_names, task_text
from rlcm_cli.errors import ConfigError

PROGRAM = typer.main.get_command(app)
COMMANDS = sorted(PROGRAM.commands)
HEAVY = {"torch", "diffusers", "transformers", "peft", "datasets", "numpy", "PIL", "safetensors"}


def params_of(command):
    """Parameters of a command, with those that it derives from the settings."""
    return command.get_params(typer.Context(command))


def test_importing_the_program_and_asking_for_help_imports_nothing_heavy():
    script = (
        "import sys, contextlib\n"
        "from rlcm_cli.cli.app import main\n"
        f"for words in [['--help'], *([name, '--help'] for name in {COMMANDS})]:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(words)\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stderr == "[]\n"
    assert all(f"rlcm {name}" in ended.stdout for name in COMMANDS)


def test_the_issue_s_commands_are_there():
    assert {"sample", "score", "train", "loop", "generate", "tasks", "inspect"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_gives_an_example_that_parses(name):
    command = PROGRAM.commands[name]
    assert command.help
    opening, _, example = command.epilog.partition(": ")
    program, called, *arguments = example.partition(" > ")[0].replace("'a cat'", "a-cat").split()
    assert (opening, program, called) == ("Example", "rlcm", name)
    command.make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    without = [parameter.name for parameter in params_of(PROGRAM.commands[name]) if not parameter.help]
    assert without == []


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_100_columns_and_cuts_nothing(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    shown = succeed(capsys, *name.split(), "--help").out
    command = PROGRAM.commands[name] if name else PROGRAM
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    for parameter in params_of(command):
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in shown


def test_short_help_is_help(capsys):
    assert succeed(capsys, "loop", "-h").out == succeed(capsys, "loop", "--help").out


@pytest.mark.parametrize(
    ("shell", "typed"),
    [
        ("bash", {"COMP_WORDS": "rlcm loop --iter", "COMP_CWORD": "2"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "rlcm loop --iter"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "rlcm loop --iter", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_a_shell_completes_an_option(capsys, monkeypatch, shell, typed):
    for name, value in {"_RLCM_COMPLETE": f"complete_{shell}", **typed}.items():
        monkeypatch.setenv(name, value)
    assert "--iterations" in succeed(capsys).out


def test_version(capsys):
    assert succeed(capsys, "--version").out == f"rlcm {__version__}\n"


def test_no_argument_shows_the_commands(capsys):
    outcome = rlcm(capsys)
    assert outcome.status == ConfigError.exit_code
    assert all(name in outcome.out + outcome.err for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lop"], ("no such command 'lop'", "'loop'", "`rlcm --help`")),
        (["loop", "--tsk", "compression"], ("--tsk", "--task", "`rlcm loop --help`")),
        (["loop", "--watch", "sharpness"], ("--watch", "--monitor", "`rlcm loop --help`")),
        (["generate", "--policy", "tcd"], ("--policy", "--sampler", "`rlcm generate --help`")),
        (["loop", "--iterations", "ten"], ("'--iterations'", "integer", "`rlcm loop --help`")),
        (["loop", "--task"], ("--task", "argument")),
        (["score"], ("missing option '--run'", "`rlcm score --help`")),
        (["inspect"], ("missing argument", "PATH")),
        (["generate", "--prompt", "cat", "--count", "0"], ("'--count'", "1")),
        (["score", "--run", __file__], ("'--run'", "is a file")),
    ],
)
def test_a_usage_mistake_is_one_line_that_names_the_command_s_help(capsys, arguments, words):
    refuse(capsys, ConfigError, *arguments, saying=words)


def test_debug_shows_the_traceback_wherever_it_stands(capsys):
    for arguments in (["tasks", "compresion", "--debug"], ["--debug", "tasks", "compresion"]):
        capsys.readouterr()
        with pytest.raises(ConfigError, match="unknown task"):
            rlcm(capsys, *arguments)


# Presets


@pytest.mark.parametrize("words", [[], ["list"]])
def test_tasks_lists_every_preset_with_a_line_on_it(capsys, words):
    lines = succeed(capsys, "tasks", *words).out.splitlines()
    assert [line.split()[0] for line in lines] == task_names()
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("words", [[], ["show"]])
@pytest.mark.parametrize("name", task_names())
def test_tasks_prints_a_preset_as_toml(capsys, words, name):
    shown = succeed(capsys, "tasks", *words, name).out
    assert shown == task_text(name)
    assert tomllib.loads(shown)["rewards"]


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (["compresion"], ("'compresion'", "did you mean 'compression'?")),
        (["show"], ("tasks show", "NAME")),
        (["a", "b", "c"], ("tasks a b c", "NAME")),
    ],
)
def test_tasks_refuses_what_it_does_not_know(capsys, words, saying):
    refuse(capsys, ConfigError, "tasks", *words, saying=saying)
