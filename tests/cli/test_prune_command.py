"""`rlcm prune`: what of a run can go is told, and then removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import checkpoints, refuse, rlcm, snapshot, succeed, write_settings
from object_stores import download

from rlcm_cli.errors import ConfigError, CorruptFileError, MissingFileError
from rlcm_cli.runs import pruning
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.run import read_pruned


@pytest.fixture(scope="module")
def finished(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four iterations; read it, or copy it, do not change it."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("pruned")
    settings = write_settings(folder, tiny_lcm, runtime={"iterations": 4}, evaluate={"every": 2})
    command = [sys.executable, "-m", "rlcm_cli", "loop", "--config", settings, "--quiet", "--run", folder / "run"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run; none of its checkpoints is the best."""
    monkeypatch.setattr(pruning, "best_held_out", lambda reached: None)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def shards(root: Path) -> list[int]:
    """Iterations whose images are there."""
    return sorted({int(file.parent.name) for file in root.glob("rollouts/*/shard-*.safetensors")})


def disk(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def test_what_would_go_is_told_and_nothing_is_removed(capsys, run):
    before = snapshot(run)
    lines = succeed(capsys, "prune", run, "--dry-run").out.splitlines()
    assert lines[0].startswith(f"{run}: images and trajectories of 3 rollouts (0 to 2), ")
    assert lines[1].startswith(f"{run}: 3 checkpoints (1 to 3), ")
    assert lines[2:] == ["nothing was removed"]
    told = succeed(capsys, "prune", run, "--dry-run", "--json").json_line()
    assert (told["rollouts"], told["checkpoints"], told["removed"]) == ([0, 1, 2], [1, 2, 3], False)
    assert snapshot(run) == before


def test_what_was_told_goes_and_the_run_is_whole_and_goes_on(capsys, run):
    told = succeed(capsys, "prune", run, "--dry-run", "--json").json_line()
    before, size = snapshot(run), disk(run)
    assert succeed(capsys, "prune", run, "--yes").out.splitlines()[-1].startswith("removed ")
    note = (run / "pruned.json").stat().st_size
    assert size - disk(run) + note == told["bytes"]
    assert (checkpoints(run), shards(run)) == ([0, 4], [3])
    assert read_pruned(RunLayout(run)).model_dump(exclude={"format_version"}) == {
        "rollouts": (0, 1, 2),
        "checkpoints": (1, 2, 3),
    }
    after = snapshot(run)
    assert {name: before[name] for name in after if name != "pruned.json"} == {
        name: digest for name, digest in after.items() if name != "pruned.json"
    }
    assert "no faults" in succeed(capsys, "inspect", run, "--verify").out
    assert succeed(capsys, "prune", run).out == f"{run}: nothing to remove\n"
    succeed(capsys, "loop", "--run", run, "--iterations", 5, "-q")
    assert checkpoints(run) == [0, 4, 5]


def test_other_numbers_may_stay_and_no_rollout_need(capsys, run):
    succeed(capsys, "prune", run, "--keep-rollouts", 3, "--keep-checkpoints", 2, "-y")
    assert (checkpoints(run), shards(run)) == ([0, 3, 4], [1, 2, 3])
    found = succeed(capsys, "prune", run, "--keep-rollouts", 0, "--keep-checkpoints", 9, "-y", "--json").json_line()
    assert (found["rollouts"], found["checkpoints"], found["removed"]) == ([1, 2, 3], [], True)
    assert (checkpoints(run), shards(run)) == ([0, 3, 4], [])


def test_a_rollout_that_is_not_trained_on_stays(capsys, run):
    succeed(capsys, "sample", "--run", run, "-q")
    assert succeed(capsys, "prune", run, "--keep-rollouts", 0, "-y", "--json").json_line()["rollouts"] == [0, 1, 2, 3]
    assert shards(run) == [4]
    succeed(capsys, "loop", "--run", run, "--iterations", 5, "-q")


def test_the_best_checkpoint_stays_and_is_told(capsys, run, monkeypatch):
    monkeypatch.setattr(pruning, "best_held_out", lambda reached: sorted(reached)[1])
    monkeypatch.setattr(pruning, "best_checkpoints", lambda *_: {"sharpness": 1})
    lines = succeed(capsys, "prune", run, "--yes").out.splitlines()
    assert lines[1].startswith(f"{run}: 1 checkpoint (3), ")
    assert lines[2:4] == [
        f"{run}: keeps checkpoint 1, the best by 'sharpness'",
        f"{run}: keeps checkpoint 2, the best on the held-out images",
    ]
    assert checkpoints(run) == [0, 1, 2, 4]
    kept = succeed(capsys, "prune", run, "--json", "--dry-run").json_line()["kept"]
    assert kept == {"1": "the best by 'sharpness'", "2": "the best on the held-out images"}


@pytest.mark.parametrize(("answer", "left"), [("y\n", [0, 4]), ("n\n", [0, 1, 2, 3, 4]), ("\n", [0, 1, 2, 3, 4])])
def test_in_a_terminal_it_asks(capsys, run, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text: (print(text), answer == "y\n")[1])
    said = succeed(capsys, "prune", run).out
    assert "Remove " in said
    assert " for good?" in said
    assert checkpoints(run) == left
    assert said.splitlines()[-1].startswith("removed " if answer == "y\n" else "nothing was removed")


def test_mistakes(capsys, run, tmp_path):
    before = snapshot(run)
    for options in ([], ["--json"]):
        outcome = rlcm(capsys, "prune", run, *options)
        assert outcome.status == ConfigError.exit_code
        assert "must be confirmed; add --yes, or --dry-run" in outcome.err
    refuse(capsys, ConfigError, "prune", run, "--yes", "--dry-run", saying=("leave one out",))
    refuse(capsys, ConfigError, "prune", run, "--keep-checkpoints", 0, saying=("--keep-checkpoints", "1"))
    refuse(capsys, ConfigError, "prune", run, "--keep-rollouts", -1, saying=("--keep-rollouts", "0"))
    refuse(capsys, MissingFileError, "prune", tmp_path / "none", "-y", saying=("is not a run directory",))
    refuse(capsys, MissingFileError, "prune", run / "checkpoints", "-y", saying=("is not a run directory",))
    assert snapshot(run) == before


@pytest.mark.parametrize("damaged", ["metrics/000002.json", "evaluations/000002/evaluation.safetensors"])
def test_where_the_best_cannot_be_known_nothing_is_removed(capsys, run, damaged):
    (run / damaged).write_bytes(b"{}")
    before = snapshot(run)
    refuse(capsys, CorruptFileError, "prune", run, "-y", saying=(damaged, "rlcm quarantine"))
    assert snapshot(run) == before


def test_a_finished_run_is_pruned_by_the_loop_too(capsys, run):
    said = succeed(capsys, "loop", "--run", run, "--keep-rollouts", 1, "--keep-checkpoints", 1).out
    assert "nothing left to train" in said
    assert "removed 3 rollouts (0 to 2)" in said
    assert shards(run) == [3]
    line = succeed(capsys, "loop", "--run", run, "--keep-rollouts", 1, "--json").json_line()
    assert "pruned" not in line


def test_a_run_on_object_storage(capsys, finished, s3, remote, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "best_held_out", lambda reached: 2 if {0, 2, 4} <= {*reached} else None)
    s3.put(f"{finished}/", remote.removeprefix("s3://"), recursive=True)
    stage = machine("two")
    told = succeed(capsys, "prune", remote, "--dry-run", "--json").json_line()
    assert (told["rollouts"], told["checkpoints"], [*told["kept"]]) == ([0, 1, 2], [1, 3], ["2"])
    removed = [*finished.glob("rollouts/00000[012]/shard-*.safetensors"), *finished.glob("checkpoints/00000[13]/*")]
    assert told["bytes"] == sum(file.stat().st_size for file in removed)
    assert not list(stage.rglob("rollouts/*/shard-*.safetensors"))
    lines = succeed(capsys, "prune", remote, "--yes").out.splitlines()
    assert lines[0].startswith(f"{remote}: images and trajectories of 3 rollouts (0 to 2), ")
    assert lines[-1].startswith("removed ")
    copy = download(s3, remote, tmp_path / "copy")
    assert (checkpoints(copy), shards(copy)) == ([0, 2, 4], [3])
    assert read_pruned(RunLayout(copy)).checkpoints == (1, 3)
    assert "no faults" in succeed(capsys, "inspect", copy, "--verify").out
    machine("three")
    assert succeed(capsys, "prune", remote, "-y").out == (
        f"{remote}: nothing to remove\n{remote}: keeps checkpoint 2, the best on the held-out images\n"
    )
    succeed(capsys, "loop", "--run", remote, "--iterations", 5, "-q")


def test_a_checkpoint_that_is_being_uploaded_is_not_taken_for_the_newest(capsys, finished, s3, remote, machine):
    s3.put(f"{finished}/", remote.removeprefix("s3://"), recursive=True)
    s3.pipe_file(f"{remote.removeprefix('s3://')}/checkpoints/000005/trainer.json", b"{}")
    told = succeed(capsys, "prune", remote, "--dry-run", "--json").json_line()
    assert 4 not in told["checkpoints"]
    assert 5 not in told["checkpoints"]
