"""Damaged, foreign, future and stale files through the command line: named, never used, never lost, mendable."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import LORA_FILE, checkpoints, refuse, rlcm, snapshot, succeed, tensor_files, write_settings

from rlcm_cli.cli.app import main
from rlcm_cli.errors import (
    CorruptFileError,
    ForeignFileError,
    FormatVersionError,
    RlcmError,
    StalePolicyError,
    StoreError,
)
from rlcm_cli.store.checkpoint import publish_checkpoint, read_trainer_state
from rlcm_cli.store.layout import RunLayout

ROLLOUT = "rollouts/000000"
SHARD = f"{ROLLOUT}/shard-00000-of-00002.safetensors"
PHASES = ("sample", "score", "train")


@pytest.fixture(scope="module")
def sampled(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of seed 0 and 1 whose first rollout is sampled and scored; copy them, do not change them."""
    folder = tmp_path_factory.mktemp("runs")
    settings = write_settings(folder, tiny_lcm)
    runs = {seed: folder / str(seed) for seed in (0, 1)}
    for seed, path in runs.items():
        for command in (["sample", "--config", str(settings), "--seed", str(seed)], ["score"]):
            with pytest.raises(SystemExit) as leaving:
                main([*command, "--run", str(path), "--quiet"])
            assert not leaving.value.code
    return runs


@pytest.fixture
def run(sampled: dict[int, Path], tmp_path: Path) -> Path:
    """A copy of the run of seed 0, to damage."""
    return Path(shutil.copytree(sampled[0], tmp_path / "run"))


@pytest.fixture
def other(sampled: dict[int, Path]) -> Path:
    """The run of seed 1."""
    return sampled[1]


def reward_shard(run: Path) -> Path:
    return next((run / ROLLOUT / "rewards").glob(f"*/{Path(SHARD).name}"))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def replace(file: Path, source: Path) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(source.with_suffix(suffix), file.with_suffix(suffix))


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], type[RlcmError], str]] = {
    "truncated shard": (lambda run, _: truncate(run / SHARD), CorruptFileError, "truncated"),
    "flipped shard": (lambda run, _: flip_a_bit(run / SHARD), CorruptFileError, "SHA-256"),
    "foreign shard": (lambda run, other: replace(run / SHARD, other / SHARD), ForeignFileError, "another plan"),
    "swapped shards": (
        lambda run, _: replace(run / SHARD, run / SHARD.replace("00000-of", "00001-of")),
        ForeignFileError,
        "does not hold the samples",
    ),
    "foreign safetensors": (
        lambda run, _: shutil.copy(run / "checkpoints/000000" / LORA_FILE, run / SHARD),
        CorruptFileError,
        "bytes",
    ),
    "truncated rewards": (lambda run, _: truncate(reward_shard(run)), CorruptFileError, "truncated"),
    "flipped rewards": (lambda run, _: flip_a_bit(reward_shard(run)), CorruptFileError, "SHA-256"),
    "foreign rewards": (
        lambda run, other: replace(reward_shard(run), reward_shard(other)),
        ForeignFileError,
        "another plan",
    ),
    "truncated plan": (lambda run, _: truncate(run / ROLLOUT / "manifest.json"), CorruptFileError, "is not JSON"),
    "truncated receipt": (lambda run, _: truncate((run / SHARD).with_suffix(".json")), CorruptFileError, "not JSON"),
    "flipped adapter": (
        lambda run, _: flip_a_bit(run / "checkpoints/000000" / LORA_FILE),
        CorruptFileError,
        "is not the file that was published",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bad_file_is_refused_untouched_and_the_printed_remedies_mend_the_run(capsys, run, other, sampled, name):
    damage, error, fault = DAMAGE[name]
    damage(run, other)
    before = snapshot(run)
    refuse(capsys, error, "train", "--run", run, saying=(str(run), fault, "`rlcm quarantine"))
    assert snapshot(run) == before

    mend(capsys, run, before)
    assert checkpoints(run) == [0, 1]
    assert snapshot(run / ROLLOUT) == snapshot(sampled[0] / ROLLOUT)
    assert tensor_files(run / "checkpoints/000000") == tensor_files(sampled[0] / "checkpoints/000000")


def mend(capsys: pytest.CaptureFixture[str], run: Path, before: dict[str, str]) -> None:
    """Do what the complaints say until there are none; what is moved away must be kept."""
    for _ in range(4):
        complaint = run_phases(capsys, run)
        if complaint is None:
            return
        (remedy,) = re.findall(r"`rlcm (quarantine [^`]*)`", complaint)
        named = Path(shlex.split(remedy)[1]).relative_to(run)
        succeed(capsys, *shlex.split(remedy))
        if str(named) in before:
            assert before[str(named)] in snapshot(run / "quarantine").values()
    pytest.fail(f"the remedies do not mend it: {complaint}")


def run_phases(capsys: pytest.CaptureFixture[str], run: Path) -> str | None:
    """Run the phases of the first iteration in turn; give the complaint of the first that fails."""
    for phase in PHASES:
        outcome = rlcm(capsys, phase, "--run", run)
        if outcome.status:
            assert outcome.status == StoreError.exit_code
            return outcome.err
    return None


@pytest.mark.parametrize("name", [name for name in DAMAGE if "swapped" not in name])
def test_inspect_verify_finds_the_fault(capsys, run, other, name):
    DAMAGE[name][0](run, other)
    outcome = rlcm(capsys, "inspect", run, "--verify")
    if outcome.err:  # a plan that cannot be read stops the description
        assert name == "truncated plan"
        assert outcome.status == CorruptFileError.exit_code
        return
    assert outcome.status == StoreError.exit_code
    faults = [line for line in outcome.out.splitlines() if line.startswith("fault: ")]
    assert len(faults) == 1
    assert "`rlcm quarantine" in faults[0]
    described = rlcm(capsys, "inspect", run, "--verify", "--json").json_line()
    assert [f"fault: {fault}" for fault in described["faults"]] == faults


def test_inspect_verify_of_a_sound_run_succeeds(capsys, run):
    assert succeed(capsys, "inspect", run, "--verify", "--json").json_line()["faults"] == []
    assert "no fault" in succeed(capsys, "inspect", run, "--verify").out


@pytest.mark.parametrize("file", [f"{ROLLOUT}/manifest.json", SHARD.replace(".safetensors", ".json"), "config.json"])
def test_a_file_of_a_newer_version_asks_for_a_newer_rlcm(capsys, run, file):
    record = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps({**record, "format_version": 2}))
    before = snapshot(run)
    saying = (str(run / file), "format version 2", "install a newer rlcm")
    refuse(capsys, FormatVersionError, "train", "--run", run, saying=saying)
    assert snapshot(run) == before


def test_a_rollout_of_another_policy_is_stale_unless_off_policy_is_asked_for(capsys, run, other):
    layout = RunLayout(run)
    state = read_trainer_state(layout, 0)
    shutil.rmtree(layout.checkpoint(0))
    publish_checkpoint(
        layout,
        0,
        write_weights=lambda folder: shutil.copy(other / "checkpoints/000000" / LORA_FILE, folder),
        model_digest=state.model_digest,
        optimizer={},
        optimizer_steps=0,
        statistics={},
    )
    before = snapshot(run)
    refuse(capsys, StalePolicyError, "train", "--run", run, saying=("another policy", "--off-policy"))
    assert snapshot(run) == before
    succeed(capsys, "train", "--run", run, "--off-policy")
    assert checkpoints(run) == [0, 1]


def test_a_run_on_other_weights_under_the_same_name_is_refused(capsys, tmp_path, tiny_lcm_copy):
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    succeed(capsys, "sample", "--config", write_settings(tmp_path, tiny_lcm_copy), "--run", run)
    weights = tiny_lcm_copy / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    refuse(capsys, ForeignFileError, "train", "--run", run, saying=("another base model", "start a new run"))


@pytest.mark.parametrize("folder", ["rollouts", "checkpoints/000000"])
def test_a_folder_of_another_run_is_refused(capsys, run, other, folder):
    shutil.rmtree(run / folder)
    shutil.copytree(other / folder, run / folder)
    before = snapshot(run)
    refuse(capsys, ForeignFileError, "train", "--run", run, saying=("belongs to another run", "`rlcm quarantine"))
    assert snapshot(run) == before


@pytest.mark.parametrize("command", ["sample", "score", "train", "evaluate", "loop", "inspect"])
def test_a_configuration_that_was_edited_is_refused(capsys, run, command):
    record = json.loads((run / "config.json").read_text())
    record["config"]["train"]["learning_rate"] = 0.5
    (run / "config.json").write_text(json.dumps(record))
    before = snapshot(run)
    named = (run,) if command == "inspect" else ("--run", run)
    refuse(capsys, ForeignFileError, command, *named, saying=(str(run / "config.json"), "edited", "put them back"))
    assert snapshot(run) == before


def test_settings_that_may_change_may_be_edited(capsys, run):
    record = json.loads((run / "config.json").read_text())
    record["config"]["runtime"]["iterations"] = 9
    record["config"]["evaluate"]["every"] = 5
    (run / "config.json").write_text(json.dumps(record))
    succeed(capsys, "train", "--run", run)


def test_names_in_messages_move_no_cursor(capsys, run):
    odd = run.rename(run.with_name("\x1b[31mrun\n"))
    (odd / "config.json").write_text("{")
    outcome = rlcm(capsys, "inspect", odd)
    assert outcome.status == CorruptFileError.exit_code
    (line,) = outcome.err.splitlines()
    assert "\\x1b[31mrun\\n/config.json: is not JSON" in line
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize("command", ["inspect", "watch", "report", "generate"])
def test_a_run_that_may_not_be_read_is_one_line(capsys, run, tmp_path, monkeypatch, command):
    open_file, denied = os.open, str(run / "config.json")

    def deny(path, *arguments, **options):
        if str(path) == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), denied)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", deny)
    arguments = {
        "inspect": (run,),
        "watch": ("--once", run),
        "report": (run, "--out", tmp_path / "report.html"),
        "generate": ("--lora", run, "--prompt", "cat", "--out", tmp_path / "out"),
    }
    refuse(capsys, StoreError, command, *arguments[command], saying=(denied, "Permission denied"))


def test_a_folder_that_may_not_be_read_is_one_line(capsys, run, monkeypatch):
    list_folder, denied = Path.iterdir, run / "checkpoints"

    def deny(self):
        if self == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return list_folder(self)

    monkeypatch.setattr(Path, "iterdir", deny)
    refuse(capsys, StoreError, "inspect", run, saying=(str(run / "checkpoints"), "Permission denied"))


def test_what_only_training_needs_is_not_read_to_draw(capsys, run, tmp_path):
    for name in ("optimizer.safetensors", "prompt_statistics.json"):
        (run / "checkpoints/000000" / name).unlink()
    model = json.loads((run / "config.json").read_text())["config"]["model"]["name"]
    options = ("--steps", 2, "--guidance", 4, "--out", tmp_path / "out", "--model", model)
    succeed(capsys, "generate", "--lora", run, "--prompt", "cat", *options)
    shutil.rmtree(run / "rollouts")
    succeed(capsys, "sample", "--run", run)
    refuse(capsys, StoreError, "train", "--run", run, saying=("score the rollout first",))


@pytest.mark.parametrize("place", ["", "checkpoints/000009"])
def test_quarantine_refuses_a_whole_run_and_what_is_not_there(capsys, run, place):
    before = snapshot(run)
    outcome = rlcm(capsys, "quarantine", run / place)
    assert outcome.status in (2, 4)
    assert outcome.err.startswith(f"rlcm: {run / place}")
    assert snapshot(run) == before
