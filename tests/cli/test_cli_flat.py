"""`rlcm loop --stop-when-flat`: a run ends where its held-out reward rises no more, and can be continued."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import checkpoints, refuse, snapshot, succeed, write_settings

from rlcm_cli.errors import ConfigError
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.remote.publishing import Publisher
from rlcm_cli.store.remote.remote_run import open_remote
from rlcm_cli.store.timings import note_planned


@pytest.fixture
def options(tiny_lcm: Path, tmp_path: Path) -> list[object]:
    """A reward that tells images apart and not policies: the held-out one stays as it is."""
    (tmp_path / "place.py").write_text(
        "def place(images, prompts, metadata):\n"
        "    import torch\n"
        "    return torch.tensor([float(entry['sample'] % 4) for entry in metadata])\n"
    )
    settings = write_settings(tmp_path, tiny_lcm, evaluate={"every": 1}, runtime={"iterations": 8})
    return ["--config", settings, "--set", f'rewards={{"{tmp_path}/place.py:place"=1}}', "--allow-code"]


def test_a_loop_stops_says_so_and_is_continued(capsys, options, tmp_path):
    run = tmp_path / "run"
    told = "stopped at iteration 2: the held-out reward has not risen for 2 evaluations, since checkpoint 0; to"
    said = succeed(capsys, "loop", *options, "--run", run, "--stop-when-flat", 2).out
    assert [line for line in said.splitlines() if told in line]
    assert (
        f"generate with checkpoint 0, the best on the held-out images: rlcm generate --lora {run}/checkpoints/000000"
        in said
    )
    assert checkpoints(run) == [0, 1, 2]
    assert "ended" in succeed(capsys, "runs", run).out
    before = snapshot(run / "checkpoints")
    again = succeed(capsys, "loop", "--run", run, "--stop-when-flat", 2, "--allow-code", "--json")
    assert again.json_line()["flat"] == {"checkpoint": 2, "best": 0}
    assert snapshot(run / "checkpoints") == before
    said = succeed(capsys, "loop", "--run", run, "--stop-when-flat", 3, "--allow-code", "-q").out
    assert "stopped at iteration 3: the held-out reward has not risen for 3 evaluations" in said
    assert checkpoints(run) == [0, 1, 2, 3]


def test_mistakes(capsys, options, tmp_path):
    run = tmp_path / "run"
    command = ("loop", *options, "--run", run, "--stop-when-flat")
    saying = ("runtime.stop_when_flat counts evaluations", "--set evaluate.every=10")
    refuse(capsys, ConfigError, "loop", "--task", "compression", "--run", run, "--stop-when-flat", 3, saying=saying)
    refuse(capsys, ConfigError, *command, 0, saying=("runtime.stop_when_flat", "greater than or equal to 1"))
    refuse(capsys, ConfigError, *command, "often", saying=("'--stop-when-flat'", "integer"))
    assert not run.exists()


def test_on_object_storage_others_see_why_it_ended(remote, machine, s3):
    run = open_remote(remote)
    layout = run.layout
    (layout.root / "config.json").write_text("{}")
    for ended in ("", "flat"):
        note_planned(layout, 2, 60, ended)
        Publisher(run).publish()
    machine("two")
    other = open_remote(remote)
    other.fetch_files([other.layout.planned(2)])
    assert RunLayout(other.layout.root).planned(2).read_bytes() == layout.planned(2).read_bytes()
