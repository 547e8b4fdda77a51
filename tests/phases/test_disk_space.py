"""The disk of a run: a loop says before it starts that there is too little space for it."""

from __future__ import annotations

import shutil

import pytest
from phase_runs import make_config, make_loop, shared_model

from rlcm_cli.events import CostEstimated, Warned
from rlcm_cli.phases.loop import estimate_cost, loop, warn_of_space
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.tensor_file import read_stored


def test_too_little_space_is_told_with_both_sizes(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1_499_999_999))
    (warned,) = warn_of_space(tmp_path, CostEstimated(seconds=1.0, disk_bytes=1_500_000_000_000, iterations=3))
    assert warned.message == (
        f"{tmp_path}: the disk has 1,500 MB left, and the run is estimated to take 1,500,000 MB; free some space, or "
        "bound the run with --keep-rollouts and --keep-checkpoints"
    )
    assert list(warn_of_space(tmp_path, CostEstimated(seconds=1.0, disk_bytes=1_499_999_999, iterations=3))) == []


@pytest.mark.parametrize(("free", "count"), [(0, 1), (1 << 50, 0)])
def test_a_loop_tells_it_after_its_estimate(tiny_lcm, tmp_path, monkeypatch, free, count):
    run = create_run(tmp_path / "run", make_config(tiny_lcm))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=free))
    events = []
    for event in loop(run, shared_model(tiny_lcm), {}):
        events.append(event)
        if not isinstance(event, CostEstimated | Warned):
            break
    spoken = [event for event in events if isinstance(event, Warned) and "the disk has" in event.message]
    assert len(spoken) == count
    assert isinstance(events[0], CostEstimated)
    assert events[0].disk_bytes > 0


def test_the_estimate_is_what_the_tensors_take(tiny_lcm, tmp_path):
    """JSON files and the numbers of each sample are not counted: some per cent of so small images."""
    run = make_loop(tmp_path / "run", make_config(tiny_lcm, train={"ema_decay": 0.9}, runtime={"iterations": 2}))
    estimate = estimate_cost(run, shared_model(tiny_lcm), 2)
    records = [*run.layout.root.rglob("*.safetensors")]
    files = [file for file in records if file.parent != run.layout.checkpoint(0)]  # where nothing is trained
    taken = sum(len(tensor.data) for file in files for tensor in read_stored(file)[0].values())
    assert 0.9 * taken < estimate.disk_bytes < 1.05 * taken
