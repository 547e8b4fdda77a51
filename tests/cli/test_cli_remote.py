"""Runs on object storage, by the commands: an S3 server on loopback, and machines with a stage each."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from command_line import refuse, rlcm, succeed, tensor_files, write_settings
from object_stores import cut, download
from PIL import Image

from rlcm_cli.cli.location import open_location
from rlcm_cli.errors import (
    ConfigError,
    CorruptFileError,
    ForeignFileError,
    MissingFileError,
    RemoteStoreError,
    RunMismatchError,
)
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.identity import identify_run
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.remote import objects
from rlcm_cli.store.remote.publishing import Publisher
from rlcm_cli.store.remote.remote_run import open_remote

SHARD = "rollouts/000000/shard-0000{}-of-00002.safetensors"


@pytest.fixture
def settings(tiny_lcm, tmp_path):
    return write_settings(tmp_path, tiny_lcm)


def comparable(root: Path) -> dict[str, object]:
    """Give what two equal runs have in common: tensors, and JSON but times and versions."""
    texts = {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*.json"))
        if file.parent.name != "metrics" and "timings" not in file.parts
    }
    return {**texts, **tensor_files(root)}


def iterate(capsys, run, *options):
    """Sample, score and train by hand."""
    succeed(capsys, "sample", "--run", run, *options, "-q")
    succeed(capsys, "score", "--run", run, "-q")
    succeed(capsys, "train", "--run", run, "-q")


def key(remote, name):
    return f"{remote.removeprefix('s3://')}/{name}"


def test_phases_on_three_machines_give_the_bytes_of_a_local_run(capsys, settings, s3, remote, machine, tmp_path):
    local = tmp_path / "local"
    for _ in range(2):
        iterate(capsys, local, "--config", settings)
    for iteration in range(2):
        machine(f"sampler-{iteration}")
        succeed(capsys, "sample", "--run", remote, "--config", settings, "--worker", "0/2", "-q")
        machine("second-sampler")
        succeed(capsys, "sample", "--run", remote, "--worker", "1/2", "-q")
        machine("scorer")
        outcome = succeed(capsys, "score", "--run", remote)
        assert f"next: rlcm train --run {remote}" in outcome.out
        assert "stage-of" not in outcome.out
        machine(f"trainer-{iteration}")
        succeed(capsys, "train", "--run", remote, "-q")
    copy = download(s3, remote, tmp_path / "copy")
    assert comparable(copy) == comparable(local)
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 2
    assert {file.name for file in copy.glob("timings/000001/*")} == {
        f"{phase}-0000{number}.json" for phase in ("sample", "score") for number in range(2)
    }


def test_a_reward_that_changed_is_noticed_on_any_machine_and_its_scores_are_kept_apart(
    capsys, settings, s3, remote, machine, tmp_path
):
    code = tmp_path / "mine.py"
    text = "def mine(images, *_):\n    return images[:, 0].float().mean((1, 2))\n"
    code.write_text(text)
    name = f"{code}:mine"
    loop = ["loop", "--run", remote, "--reward", name]
    succeed(capsys, *loop, "--config", settings, "--iterations", 1, "-q")
    succeed(capsys, "sample", "--run", remote, "-q")
    code.write_text(text.replace("[:, 0]", "[:, 1]"))
    machine("scorer")
    refuse(capsys, RunMismatchError, "score", "--run", remote, "--allow-code", saying=(f"the code of reward {name}",))
    succeed(capsys, "score", "--run", remote, "--allow-code", "--allow-changed-code", "-q")
    machine("trainer")
    succeed(capsys, "train", "--run", remote, "-q")
    machine("another")
    succeed(capsys, *loop, "--iterations", 3, "-q")
    copy = RunLayout(download(s3, remote, tmp_path / "copy"))
    revisions = [row.reward_revisions[name] for row in read_metrics(copy)]
    assert revisions[0] != revisions[1] == revisions[2]
    for checkpoint, channel in ((0, 1), (3, 1)):
        found = read_evaluation(copy, checkpoint)
        assert found.revisions[name] == revisions[2]
        means = found.images[:, channel].mean((1, 2), dtype=np.float32)
        assert found.rewards[name].tolist() == means.tolist()


def test_machines_that_draw_with_the_policy_before_give_the_bytes_of_a_local_run(
    capsys, settings, s3, remote, machine, tmp_path
):
    local, stale = tmp_path / "local", ("--config", settings, "--set", "sample.staleness=1")
    for _ in range(3):
        iterate(capsys, local, *stale)
    for iteration in range(3):
        for phase, options in (("sample", stale), ("score", ()), ("train", ())):
            machine(f"{phase}-{iteration}")
            succeed(capsys, phase, "--run", remote, *options, "-q")
    assert comparable(download(s3, remote, tmp_path / "copy")) == comparable(local)


def test_a_worker_fetches_no_more_than_it_needs(capsys, settings, remote, machine):
    succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    stage = machine("second")
    succeed(capsys, "sample", "--run", remote, "-q")
    assert not list(stage.rglob("shard-*.safetensors"))
    assert len(list(stage.rglob("run/rollouts/*/shard-*.json"))) == 2
    stage = machine("scorer")
    succeed(capsys, "score", "--run", remote, "--worker", "1/2", "-q")
    assert [file.name for file in stage.glob("*/run/rollouts/000000/shard-*.safetensors")] == [
        Path(SHARD.format(1)).name
    ]
    assert not list(stage.rglob("pytorch_lora_weights.safetensors")), "scoring needs no checkpoint"


def test_loop_goes_on_elsewhere_and_prunes_what_other_machines_made(capsys, settings, s3, remote, machine, tmp_path):
    local = tmp_path / "local"
    succeed(capsys, "loop", "--run", local, "--config", settings, "--iterations", 2, "-q")
    succeed(capsys, "loop", "--run", local, "--iterations", 4, "-q")
    succeed(capsys, "loop", "--run", remote, "--config", settings, "--iterations", 2, "-q")
    machine("two")
    options = ("--keep-rollouts", 1, "--keep-checkpoints", 2)
    outcome = succeed(capsys, "loop", "--run", remote, "--iterations", 4, *options)
    assert f"{remote}/before_after.png: the same" in outcome.out
    copy = download(s3, remote, tmp_path / "copy")
    reached = {
        number: read_evaluation(RunLayout(local), number).rewards["compressibility"].mean() for number in (0, 2)
    }
    best = max(reached, key=reached.get)  # of those that were evaluated before the last one was
    assert [int(folder.name) for folder in sorted(copy.glob("checkpoints/*"))] == sorted({0, best, 3, 4})
    assert {file.parent.name for file in copy.glob("rollouts/*/shard-*.safetensors")} == {"000003"}
    assert len(list(copy.glob("rollouts/*/shard-*.json"))) == 8
    assert "no faults" in succeed(capsys, "inspect", copy, "--verify").out
    assert (copy / "before_after.png").read_bytes() == (local / "before_after.png").read_bytes()
    theirs, ours = tensor_files(local), tensor_files(copy)
    assert {name: theirs[name] for name in ours} == ours


def test_a_cut_upload_is_mended_by_the_machine_that_made_it(capsys, settings, s3, remote, machine, tmp_path):
    succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    whole = s3.cat_file(key(remote, SHARD.format(0)))
    cut(s3, key(remote, SHARD.format(0)))
    machine("scorer")
    refuse(
        capsys, CorruptFileError, "score", "--run", remote,
        saying=(f"{remote}/{SHARD.format(0)}", f"of {len(whole)} bytes", f"rlcm quarantine {remote}/rollouts"),
    )  # fmt: skip
    machine("one")
    succeed(capsys, "sample", "--run", remote, "-q")
    assert s3.cat_file(key(remote, SHARD.format(0))) == whole
    machine("scorer")
    succeed(capsys, "score", "--run", remote, "-q")


def test_a_cut_upload_goes_into_quarantine_and_is_drawn_again_anywhere(capsys, settings, s3, remote, machine):
    succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    whole = s3.cat_file(key(remote, SHARD.format(0)))
    cut(s3, key(remote, SHARD.format(0)))
    machine("two")
    refuse(capsys, CorruptFileError, "sample", "--run", remote, saying=(f"quarantine {remote}/{SHARD.format(0)}",))
    outcome = succeed(capsys, "quarantine", f"{remote}/{SHARD.format(0)}")
    assert f"moved to {remote}/quarantine/{SHARD.format(0)}" in outcome.out
    refuse(capsys, MissingFileError, "quarantine", f"{remote}/{SHARD.format(0)}", saying=("nothing to move",))
    refuse(capsys, MissingFileError, "quarantine", f"{remote}/config.jsn", saying=("nothing to move",))
    succeed(capsys, "sample", "--run", remote, "-q")
    assert s3.cat_file(key(remote, SHARD.format(0))) == whole
    machine("one")  # which has the file that was quarantined elsewhere
    succeed(capsys, "score", "--run", remote, "-q")
    succeed(capsys, "inspect", remote, "--verify")


def test_what_was_quarantined_elsewhere_does_not_come_back(capsys, settings, s3, remote, machine):
    iterate(capsys, remote, "--config", settings)
    machine("two")
    succeed(capsys, "quarantine", f"{remote}/checkpoints/000001")
    succeed(capsys, "quarantine", f"{remote}/rollouts/000000")
    machine("one")
    described = succeed(capsys, "inspect", remote, "--json").json_line()
    assert described["checkpoints"] == [0]
    assert described["rollouts"] == {}
    iterate(capsys, remote)
    assert s3.exists(key(remote, "checkpoints/000001/complete.json"))
    assert s3.exists(key(remote, "quarantine/checkpoints/000001/complete.json"))


def test_a_damaged_checkpoint_is_refused(capsys, settings, s3, remote, machine):
    succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    cut(s3, key(remote, "checkpoints/000000/pytorch_lora_weights.safetensors"))
    machine("two")
    refuse(
        capsys, CorruptFileError, "sample", "--run", remote,
        saying=(f"{remote}/checkpoints/000000/pytorch_lora_weights.safetensors: is not the file", "rlcm quarantine"),
    )  # fmt: skip


def test_what_a_killed_process_left_in_the_stage_is_published_by_the_next_command(
    capsys, settings, s3, remote, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "_publish_record", lambda *_: None)
        succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    assert not s3.exists(key(remote, SHARD.format(0)))
    succeed(capsys, "score", "--run", remote, "-q")
    assert s3.exists(key(remote, SHARD.format(0).replace(".safetensors", ".json")))


def test_data_without_a_receipt_are_taken_over_or_put_again(capsys, settings, s3, remote, machine, tmp_path):
    succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    receipts = [key(remote, SHARD.format(n).replace(".safetensors", ".json")) for n in (0, 1)]
    records = [s3.cat_file(key(remote, SHARD.format(n))) for n in (0, 1)]
    expected = [s3.cat_file(receipt) for receipt in receipts]
    for receipt in receipts:  # as if the writer had died right before them
        s3.rm_file(receipt)
    cut(s3, key(remote, SHARD.format(1)))
    machine("two")
    succeed(capsys, "sample", "--run", remote, "-q")
    assert [s3.cat_file(receipt) for receipt in receipts] == expected
    assert [s3.cat_file(key(remote, SHARD.format(n))) for n in (0, 1)] == records


def test_two_machines_with_the_same_shards_keep_the_version_of_one(capsys, settings, s3, remote, machine, tmp_path):
    """The loser's bytes differ, as those of another kind of processor do."""
    succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    one = tmp_path / "stage-of-one"
    for location in ("two", "three"):
        shutil.copytree(one, tmp_path / f"stage-of-{location}")
    names = [SHARD.format(n) for n in (0, 1)]
    for name in names:
        for suffix in (".safetensors", ".json"):
            s3.rm_file(key(remote, name.replace(".safetensors", suffix)))
    publishers = []
    for location in ("two", "three"):
        machine(location)
        other = open_remote(remote)
        for name in names:
            other.stage.forget(name.replace(".safetensors", ".json"))
            if location == "three":
                _change_a_pixel(other.stage.path(name))
        publishers.append(Publisher(other))
    threads = [threading.Thread(target=publisher.publish) for publisher in publishers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copy = download(s3, remote, tmp_path / "copy")
    for publisher in publishers:
        for name in names:
            for suffix in (".safetensors", ".json"):
                file = name.replace(".safetensors", suffix)
                assert publisher.remote.stage.path(file).read_bytes() == (copy / file).read_bytes()
    machine("scorer")
    succeed(capsys, "score", "--run", remote, "-q")
    succeed(capsys, "inspect", remote, "--verify")


def _change_a_pixel(record: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    from rlcm_cli.store.atomic import replace_bytes
    from rlcm_cli.store.layout import receipt_path
    from rlcm_cli.store.shards import encode_receipt, restore_receipt

    with safe_open(record, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    tensors["images"][0, 0, 0, 0] ^= 1
    save_file(tensors, record, metadata=metadata)
    restored = restore_receipt(record)
    assert restored is not None
    replace_bytes(receipt_path(record), encode_receipt(restored[0]))


def test_a_run_that_another_machine_starts_with_other_settings_is_refused(
    capsys, settings, s3, remote, machine, monkeypatch
):
    original = Publisher.publish
    started = []

    def publish(self):
        if not started and self.remote.layout.config.exists():
            started.append(True)
            theirs = json.loads(self.remote.layout.config.read_text())
            theirs["config"]["seed"] = 77
            theirs["run"] = identify_run(theirs["config"])
            s3.pipe_file(key(remote, "config.json"), json.dumps(theirs).encode())
        original(self)

    monkeypatch.setattr(Publisher, "publish", publish)
    refuse(capsys, RunMismatchError, "sample", "--run", remote, "--config", settings, saying=("seed", remote))


def test_a_lora_is_drawn_with_from_its_url(capsys, settings, s3, remote, machine, tmp_path):
    iterate(capsys, remote, "--config", settings)
    local = download(s3, remote, tmp_path / "copy")
    lora = "checkpoints/000001/pytorch_lora_weights.safetensors"
    s3.pipe_file(f"{remote.split('/')[2]}/alone.safetensors", (local / lora).read_bytes())
    pictures = {}
    locations = [local, remote, f"{remote}/checkpoints/000001", f"{remote}/{lora}"]
    for number, location in enumerate([*locations, f"s3://{remote.split('/')[2]}/alone.safetensors"]):
        machine(str(number))
        out = tmp_path / f"out-{number}"
        model = ("--model", json.loads((local / "config.json").read_text())["config"]["model"]["name"])
        options = ("--steps", 2, "--guidance", 4, "--out", out, "-q", *model)
        succeed(capsys, "generate", "--lora", location, "--prompt", "cat", *options)
        with Image.open(next(out.glob("0*.png"))) as picture:  # what it says of itself names the run
            pictures[number] = picture.tobytes()
    assert len(set(pictures.values())) == 1
    machine("new")
    refuse(capsys, ConfigError, "generate", "--lora", f"{remote}/nowhere", "--prompt", "cat", saying=("no such run",))


def test_inspect_evaluate_and_compare_take_urls(capsys, settings, remote, machine, tmp_path):
    iterate(capsys, remote, "--config", settings)
    iterate(capsys, remote)
    machine("two")
    succeed(capsys, "evaluate", "--run", remote, "--checkpoint", 0, "--checkpoint", 2, "-q")
    machine("three")
    described = succeed(capsys, "inspect", remote, "--json").json_line()
    assert described["checkpoints"] == [0, 1, 2]
    assert described["evaluations"] == [0, 2]
    assert described["rollouts"]["1"]["sampled"] == "2/2"
    assert succeed(capsys, "inspect", f"{remote}/checkpoints/000001", "--json").json_line()["number"] == 1
    record = succeed(capsys, "inspect", f"{remote}/{SHARD.format(1)}", "--json").json_line()
    assert record["kind"] == "rollout"
    succeed(capsys, "inspect", remote, "--images", tmp_path / "images", "--rollout", 0)
    assert len(list((tmp_path / "images").glob("000000-*.png"))) == 4
    machine("four")
    succeed(capsys, "compare", remote, "--out", tmp_path / "comparison")
    succeed(capsys, "score", "--run", remote, "--reward", "mirror_symmetry", "--worker", "1/2", "-q")


def test_mistakes(capsys, settings, s3, remote, machine, monkeypatch):
    monkeypatch.setattr(objects, "FIRST_PAUSE", 0.001)
    refuse(capsys, ConfigError, "train", "--run", "s3://key:secret@bucket/run", saying=("environment",))
    for command in ("train", "score"):
        refuse(capsys, MissingFileError, command, "--run", remote, saying=(f"{remote}: is not a run directory",))
    refuse(
        capsys, RemoteStoreError, "sample", "--run", "s3://no-such-bucket/run", "--config", settings,
        saying=("s3://no-such-bucket/run", "look at bucket, credentials"),
    )  # fmt: skip
    for command in ("inspect", "quarantine"):
        refuse(capsys, ForeignFileError, command, f"{remote}/x", saying=("lies in no run",))


def test_a_checkpoint_that_names_a_file_outside_is_refused(capsys, settings, s3, remote, machine, tmp_path):
    succeed(capsys, "sample", "--run", remote, "--config", settings, "-q")
    marker = key(remote, "checkpoints/000000/complete.json")
    content = json.loads(s3.cat_file(marker))
    content["files"]["../../../../evil"] = "0"
    s3.pipe_file(marker, json.dumps(content).encode())
    machine("two")
    outcome = rlcm(capsys, "sample", "--run", remote)
    assert outcome.status == 4
    assert "is not a name of a file in the folder" in outcome.err
    assert not list(tmp_path.rglob("evil"))


def test_a_plain_path_has_no_stage(capsys, settings, machine, tmp_path):
    stage = machine("none")
    succeed(capsys, "sample", "--run", f"file://{tmp_path}/plain", "--config", settings, "-q")
    assert (tmp_path / "plain/config.json").exists()
    assert not stage.exists()
    with open_location("runs/a", print) as location:
        assert (location.root, location.url) == (Path("runs/a"), None)
