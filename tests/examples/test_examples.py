"""The examples run, on the embedded model and the smallest settings; each is what a person would start."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.rollouts import read_shard_rewards
from rlcm_cli.store.run import read_config

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*/*.sh")) + sorted(EXAMPLES.glob("*/*.sbatch"))
NOTEBOOK = EXAMPLES / "notebook/train.ipynb"
LONGEST = 900  # seconds; a loaded machine starts a process slowly
SMALL = {
    "sample.samples": 4,
    "sample.steps": 2,
    "sample.batch_size": 4,
    "train.minibatch_size": 4,
    "evaluate.prompts": 2,
    "evaluate.images_per_prompt": 2,
    "runtime.micro_batch_size": 4,
}
ASSIGNMENTS = [f"{key}={value}" for key, value in SMALL.items()]
OPTIONS = [word for assignment in ASSIGNMENTS for word in ("--set", assignment)]
MODULES = sorted(EXAMPLES.glob("*/*.py"))
POSIX = pytest.mark.skipif(os.name != "posix", reason="the example is a shell script")


@pytest.fixture
def start(tmp_path):
    """Run a script of an example with small settings, `rlcm` being this checkout's; gives what it printed."""
    program = tmp_path / "bin/rlcm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rlcm_cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)

    def run(script: str, *arguments: str, **variables: str) -> str:
        environment = {
            **os.environ,
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(EXAMPLES.parent),
            "OMP_NUM_THREADS": "1",
            "WORK": str(tmp_path / "work"),
            **variables,
        }
        ended = subprocess.run(
            [EXAMPLES / script, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LONGEST,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    return run


def load(path: Path):
    """Import a file of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(run: Path) -> list[int]:
    return [row.checkpoint for row in read_metrics(RunLayout(run))]


def rewards_of(run: Path, iteration: int) -> dict[str, dict[int, float]]:
    layout = RunLayout(run)
    return read_shard_rewards(layout, read_manifest(layout.manifest(iteration)), 0)


# All of them


@POSIX
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_can_be_read_by_the_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) or script.name != "run.sh"


def test_every_example_says_what_it_is():
    folders = {file.parent for kind in ("py", "sh", "ipynb") for file in EXAMPLES.glob(f"*/[!_]*.{kind}")}
    assert {"two_machines", "custom_reward", "reward_server", "notebook"} <= {folder.name for folder in folders}
    for folder in folders:
        assert (folder / "README.md").read_text(encoding="utf-8").startswith("# "), folder


# One by one


def test_from_python(tmp_path, capsys):
    example = load(EXAMPLES / "from_python/train.py")
    picture = example.fine_tune(tmp_path / "run", [*ASSIGNMENTS, "runtime.iterations=2"])
    assert picture.exists()
    assert trained(tmp_path / "run") == [1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "1",
        "fixed images of checkpoint 0",
        "2",
        "fixed images of checkpoint 2",
    ]
    assert lines[0].startswith("1: redness ")


def test_the_notebook_is_stored_with_small_outputs_of_one_run():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    assert sum(map(len, pictures)) < 200_000
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    assert not re.search(r"/(home|root|tmp|Users|usr|var)\b|[A-Z]:\\", json.dumps(outputs))
    assert not any(cell["metadata"] for cell in code)


def test_what_the_notebook_imports_is_there():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [ast.parse("".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    imported = [node for cell in cells for node in cell.body if isinstance(node, ast.ImportFrom)]
    assert any(node.module == "rlcm_cli.phases.loop" for node in imported)
    for node in imported:
        check_import(node)


def check_import(node: ast.ImportFrom) -> None:
    module = importlib.import_module(str(node.module))
    assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_what_a_module_takes_of_the_package_is_there(file):
    """Also of those whose own packages may be absent, such as the one that draws emoji."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rlcm_cli"):
            check_import(node)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    script = (
        "import nbclient, nbformat, sys\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "nbclient.NotebookClient(notebook, timeout=600).execute()\n"
    )
    environment = {"PYTHONPATH": str(EXAMPLES.parent), "ITERATIONS": "2", "SAMPLES": "4", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", script, NOTEBOOK],
        cwd=tmp_path,
        env={**os.environ, **environment},
        check=True,
        timeout=LONGEST,
    )
    assert trained(tmp_path / "runs/notebook") == [1, 2]


@POSIX
@pytest.mark.slow
def test_two_machines(start, tmp_path):
    said = start("two_machines/run.sh", "--task", "compression", *OPTIONS)
    a, b = (tmp_path / "work" / machine / "run" for machine in "ab")
    assert trained(a) == [1, 2]
    assert not (b / "checkpoints").exists()
    for iteration in range(2):
        assert rewards_of(a, iteration) == rewards_of(b, iteration)
    assert "next: rlcm score" in said
    assert len(list((tmp_path / "work/drawn").glob("*-a-cat-*.png"))) == 8


@POSIX
@pytest.mark.slow
def test_custom_reward(start, tmp_path):
    start("custom_reward/run.sh", *OPTIONS, ITERATIONS="1")
    for name in ("redness", "variety"):
        (row,) = read_metrics(RunLayout(tmp_path / "work" / name))
        assert set(row.rewards) == {f"{EXAMPLES}/custom_reward/{name}.py:{name}", "recognition"}
        (values,) = [
            found for key, found in rewards_of(tmp_path / "work" / name, 0).items() if key.startswith(f"{name}-")
        ]
        assert len(values) == 4
        assert len(set(values.values())) > 1


@POSIX
@pytest.mark.slow
def test_reward_server(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said = start("reward_server/run.sh", *OPTIONS, PORT=str(port), ITERATIONS="3", AWAY="4")
    assert "the server is killed" in said
    assert trained(tmp_path / "work/run") == [1, 2, 3]
    assert f"http://127.0.0.1:{port}/colourfulness" in read_metrics(RunLayout(tmp_path / "work/run"))[-1].rewards


@POSIX
@pytest.mark.slow
def test_resuming(start, tmp_path):
    said = start("resuming/run.sh", *OPTIONS, ITERATIONS="12")
    assert "killed" in said, "the run was to be killed in the middle"
    assert "resuming after iteration" in said
    assert "all checksums match" in said
    assert trained(tmp_path / "work/run") == [*range(1, 25)]


@POSIX
@pytest.mark.slow
def test_two_rewards(start, tmp_path):
    start("two_rewards/run.sh", *OPTIONS, ITERATIONS="2")
    for combine in ("normalised", "sum"):
        assert read_config(RunLayout(tmp_path / "work" / combine))["combine"] == combine
        assert trained(tmp_path / "work" / combine) == [1, 2]
    assert (tmp_path / "work/compared").exists()
