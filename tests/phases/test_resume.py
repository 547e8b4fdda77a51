"""A run that was interrupted or damaged anywhere, continued, equals one that was not."""

import re
import shutil
from pathlib import Path

import pytest
from phase_runs import (
    copy_run,
    did_nothing,
    fingerprint,
    finish,
    make_config,
    prepare,
    published_shards,
    remove_record,
    shared_model,
)

from rlcm_cli.errors import RlcmError, StoreError
from rlcm_cli.events import PhaseStarted
from rlcm_cli.phases import sample as sample_module
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.layout import receipt_path
from rlcm_cli.store.quarantine import quarantine


def publications(root):
    """List what a run published, in that order: files, and checkpoint folders."""
    folders = list((root / "checkpoints").iterdir())
    files = [file for file in root.rglob("*") if file.is_file() and file.parent not in folders]
    # A folder is published after its last file; the copy that a test gets keeps the times of files alone.
    return sorted(
        [*folders, *files],
        key=lambda path: max(file.stat().st_mtime_ns for file in ([path] if path.is_file() else path.iterdir())),
    )


def continue_run(root, model_folder):
    run = create_run(root, make_config(model_folder))
    finish(loop(run, shared_model(model_folder), load_scorers(run)))


def test_a_run_interrupted_after_any_publication_ends_the_same(tiny_lcm, finished_run, tmp_path):
    complete = finished_run
    expected = fingerprint(complete)
    total = len(publications(complete))
    assert total > 25
    for count in range(1, total, 3):  # test_kill.py stops at every one
        root = tmp_path / f"{count}"
        shutil.copytree(complete, root)
        for path in publications(root)[count:]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):  # a folder is made when something is published in it
                folder.rmdir()
        before = published_shards(root)
        continue_run(root, tiny_lcm)
        assert fingerprint(root) == expected, f"interrupted after {count} publications"
        after = published_shards(root)
        assert {path: after[path] for path in before} == before, "a published shard was written again"
        shutil.rmtree(root)


def test_only_the_shard_that_is_missing_is_drawn_and_scored(tiny_lcm, tmp_path, monkeypatch):
    run, model = prepare(tmp_path / "run", make_config(tiny_lcm, sample={"shards": 4}))
    expected = fingerprint(run.layout.root)
    remove_record(run.layout.shard(0, 2, 4))
    drawn, draw_shard = [], sample_module.draw_shard

    def record(manifest, model, number):
        drawn.append(number)
        return draw_shard(manifest, model, number)

    monkeypatch.setattr(sample_module, "draw_shard", record)
    events = finish(sample(run, model))
    assert drawn == [2]
    assert [event.total for event in events if isinstance(event, PhaseStarted)] == [2]
    assert did_nothing(finish(score(run, load_scorers(run))))  # its rewards still fit: the same bytes
    assert fingerprint(run.layout.root) == expected


def test_a_shard_whose_writer_died_before_the_receipt_is_drawn_again(tiny_lcm, tmp_path):
    run, model = prepare(tmp_path / "run", make_config(tiny_lcm))
    expected = fingerprint(run.layout.root)
    shard = run.layout.shard(0, 1, 2)
    receipt_path(shard).unlink()
    shard.write_bytes(shard.read_bytes()[:100])
    finish(sample(run, model))
    assert fingerprint(run.layout.root) == expected


def flip(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-7])


def advice_of(root, model_folder):
    """Continue a run; give the place that its error advises to move away, None where it ends well."""
    try:
        continue_run(root, model_folder)
    except StoreError as error:
        (place,) = re.findall(r"`rlcm quarantine (.+?)`", str(error))
        return Path(place)
    return None


REWARDS = "rollouts/000001/rewards/*/"


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "pattern",
    [
        "rollouts/000001/shard-00001-of-00002.safetensors",
        "rollouts/000001/shard-00001-of-00002.json",
        REWARDS + "shard-00000-of-00002.safetensors",
        REWARDS + "shard-00000-of-00002.json",
        "rollouts/000001/manifest.json",
        "checkpoints/000001/pytorch_lora_weights.safetensors",
        "checkpoints/000001/optimizer.safetensors",
        "checkpoints/000001/prompt_statistics.json",
        "checkpoints/000001/trainer.json",
        "checkpoints/000001/complete.json",
        "evaluations/000000/evaluation.safetensors",
        "evaluations/000000/evaluation.json",
    ],
)
def test_following_the_advice_of_the_errors_mends_the_run(tiny_lcm, finished_run, tmp_path, pattern, damage):
    complete = finished_run
    root = tmp_path / "run"
    copy_run(complete, root)
    for name in ("checkpoints/000002", "evaluations/000002"):
        shutil.rmtree(root / name)
    (path,) = root.glob(pattern)
    damage(path)
    for _ in range(4):
        advice = advice_of(root, tiny_lcm)
        if advice is None:
            break
        quarantine(advice)
    assert fingerprint(root) == fingerprint(complete)


def test_without_the_rollouts_a_lost_checkpoint_is_named_as_what_it_is(tiny_lcm, finished_run, tmp_path):
    run = copy_run(finished_run, tmp_path / "run")
    for path in (run.layout.shard(1, 0, 2), run.layout.checkpoint(2)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RlcmError, match="has a receipt but is gone; if it was pruned, its iteration is done"):
        continue_run(run.layout.root, tiny_lcm)
