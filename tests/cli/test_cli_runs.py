"""Whole runs through the command line: phases by hand, resuming, extending, and what is printed of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import LORA_FILE, checkpoints, rlcm, snapshot, succeed, tensor_files, write_settings
from safetensors.torch import load_file

TIMES = ("sample_seconds", "score_seconds", "train_seconds", "cpu_seconds", "finished_at")


@pytest.fixture
def settings(tiny_lcm: Path, tmp_path: Path) -> Path:
    """A file for --config: two iterations of the tiny model."""
    return write_settings(tmp_path, tiny_lcm)


def metrics(run: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def without_evaluations(digests: dict[str, str]) -> dict[str, str]:
    return {file: digest for file, digest in digests.items() if not file.startswith("evaluations")}


def test_phases_by_hand_make_the_tensors_and_metrics_of_the_loop(capsys, settings, tmp_path):
    looped, by_hand = tmp_path / "looped", tmp_path / "by_hand"
    succeed(capsys, "loop", "--config", settings, "--run", looped)
    for _ in range(2):
        succeed(capsys, "sample", "--config", settings, "--run", by_hand)
        succeed(capsys, "score", "--run", by_hand)
        succeed(capsys, "train", "--run", by_hand)
    assert checkpoints(by_hand) == [0, 1, 2]
    assert tensor_files(by_hand) == without_evaluations(tensor_files(looped))
    assert metrics(by_hand) == metrics(looped)
    assert (by_hand / "config.json").read_bytes() == (looped / "config.json").read_bytes()


def test_each_phase_names_the_next_and_does_nothing_twice(capsys, settings, tmp_path):
    run = tmp_path / "run"
    for command, following in (
        (["sample", "--config", settings], f"next: rlcm score --run {run}"),
        (["score"], f"next: rlcm train --run {run}"),
        (["train"], f"next: rlcm sample --run {run}"),
    ):
        assert following in succeed(capsys, *command, "--run", run).out
        if command[0] != "train":
            done = snapshot(run)
            assert "nothing to do" in succeed(capsys, *command, "--run", run).out
            assert snapshot(run) == done
    done = snapshot(run)
    assert succeed(capsys, "train", "--run", run, "--json").json_line()["skipped"] == ["train"]
    assert snapshot(run) == done


def test_two_workers_share_the_shards_of_one(capsys, settings, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    succeed(capsys, "sample", "--config", settings, "--run", alone)
    succeed(capsys, "sample", "--config", settings, "--run", shared, "--worker", "1/2")
    assert len(list((shared / "rollouts/000000").glob("*.safetensors"))) == 1
    assert "1 of 2 shards are not sampled yet" in succeed(capsys, "score", "--run", shared).out
    succeed(capsys, "sample", "--config", settings, "--run", shared, "--worker", "0/2")
    assert tensor_files(shared / "checkpoints") == tensor_files(alone / "checkpoints")
    for shard in (alone / "rollouts/000000").glob("*.safetensors"):
        assert (shared / "rollouts/000000" / shard.name).read_bytes() == shard.read_bytes()


def test_a_finished_run_is_extended_with_or_without_its_task(capsys, settings, tmp_path):
    straight, extended = tmp_path / "straight", tmp_path / "extended"
    succeed(capsys, "loop", "--config", settings, "--run", straight, "--iterations", "3")
    succeed(capsys, "loop", "--config", settings, "--run", extended, "--iterations", "1")
    said = succeed(capsys, "loop", "--run", extended, "--iterations", "2").out
    assert "resuming after iteration 1" in said
    assert "iteration 2/2" in said
    succeed(capsys, "loop", "--task", "compression", "--config", settings, "--run", extended, "--iterations", "3")
    for part in ("rollouts", "checkpoints", "evaluations/000003"):
        assert tensor_files(extended / part) == tensor_files(straight / part)


def test_a_finished_loop_says_so_and_changes_nothing(capsys, settings, tmp_path):
    run = tmp_path / "run"
    succeed(capsys, "loop", "--config", settings, "--run", run)
    done = snapshot(run)
    said = succeed(capsys, "loop", "--config", settings, "--run", run).out
    assert "nothing left to train: 2 iterations are done; extend the run with --iterations 4" in said
    assert snapshot(run) == done


def test_the_settings_of_runtime_may_change_between_calls(capsys, settings, tmp_path):
    run = tmp_path / "run"
    succeed(capsys, "sample", "--config", settings, "--run", run)
    succeed(capsys, "score", "--run", run)
    succeed(capsys, "train", "--run", run, "--micro-batch", "3", "--device", "cpu")
    changed = ["--set", "runtime.micro_batch_size=4", "--keep-rollouts", "1", "--keep-checkpoints", "1"]
    succeed(capsys, "loop", "--run", run, "--iterations", "3", *changed)
    assert checkpoints(run) == [0, 3]
    assert [folder.name for folder in (run / "rollouts").iterdir() if list(folder.glob("*.safetensors"))] == ["000002"]


def test_a_loop_tells_people_what_it_does(capsys, settings, tmp_path):
    run = tmp_path / "run"
    said = succeed(capsys, "loop", "--config", settings, "--run", run).out
    for words in (
        f"run {run}: task compression",
        "seed 0",
        "guidance 4, 16×16 pixels; trained: a LoRA of rank 2 on to_q, to_k, to_v, to_out.0",
        "device cpu",
        "2 iterations will take about",
        "of disk",
        "iteration 1/2  reward -",
        " ± ",
        "best",
        "held-out evaluation, checkpoint 0: ",
        "held-out evaluation, checkpoint 2: ",
        " on held-out prompts",
        "before_after.png: the same held-out seeds before (left) and after (right)",
        f"rlcm generate --lora {run}",
    ):
        assert words in said
    assert (run / "before_after.png").stat().st_size > 0


def test_a_quiet_loop_prints_the_two_evaluations_alone(capsys, settings, tmp_path):
    outcome = succeed(capsys, "loop", "--config", settings, "--run", tmp_path / "run", "--quiet")
    said = [line.partition(":")[0] for line in outcome.out.splitlines()]
    assert said == ["held-out evaluation, checkpoint 0", "held-out evaluation, checkpoint 2"]
    assert outcome.err == ""


def test_json_is_one_line_that_sums_the_loop_up(capsys, settings, tmp_path):
    run = tmp_path / "run"
    outcome = succeed(capsys, "loop", "--config", settings, "--run", run, "--json")
    summary = outcome.json_line()
    last = json.loads((run / "metrics/000002.json").read_text())
    assert (summary["run"], summary["checkpoint"]) == (str(run), 2)
    assert summary["reward_mean"] == last["reward_mean"]
    assert summary["evaluations"].keys() == {"0", "2"}
    assert summary["evaluations"]["0"].keys() == {"reward_training", "reward_held_out", "compressibility"}
    assert Path(summary["picture"]).is_file()
    assert "iteration 1/2" in outcome.err


@pytest.mark.parametrize("command", ["score", "train", "evaluate"])
def test_json_of_a_phase_is_the_only_line_on_stdout(capsys, settings, tmp_path, command):
    run = tmp_path / "run"
    assert succeed(capsys, "sample", "--config", settings, "--run", run, "--json").json_line() == {
        "run": str(run),
        "iteration": 1,
        "complete": True,
        "shards": 2,
        "shards_done": 2,
    }
    if command == "train":
        succeed(capsys, "score", "--run", run)
    assert succeed(capsys, command, "--run", run, "--json").json_line()["run"] == str(run)


def test_evaluate_draws_the_named_checkpoints(capsys, settings, tmp_path):
    run = tmp_path / "run"
    succeed(capsys, "loop", "--config", settings, "--run", run)
    said = succeed(capsys, "evaluate", "--run", run, "--checkpoint", "1", "--checkpoint", "0", "--json").json_line()
    assert list(said["evaluations"]) == ["1", "0"]
    assert sorted(folder.name for folder in (run / "evaluations").iterdir()) == ["000000", "000001", "000002"]


def test_a_run_starts_from_the_adapter_of_another(capsys, settings, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    succeed(capsys, "loop", "--config", settings, "--run", first)
    # Another rank in the file: the LoRA's own wins, since no other fits.
    asked = ["loop", "--config", settings, "--run", second, "--from", first, "--set", "lora.rank=7"]
    succeed(capsys, *asked)
    start = load_file(second / "checkpoints/000000" / LORA_FILE)
    origin = load_file(first / "checkpoints/000002" / LORA_FILE)
    assert start.keys() == origin.keys()
    assert all(start[name].equal(origin[name]) for name in start)
    assert "nothing left to train" in succeed(capsys, *asked).out


def test_a_run_without_a_directory_goes_to_runs_task(capsys, monkeypatch, settings, tmp_path):
    monkeypatch.chdir(tmp_path)
    succeed(capsys, "sample", "--config", settings)
    assert (tmp_path / "runs/compression/config.json").is_file()


def test_flags_reach_the_configuration(capsys, settings):
    flags = {
        "--samples": ("sample", "samples", 6),
        "--steps": ("sample", "steps", 2),
        "--dtype": ("model", "dtype", "bfloat16"),
        "--model": ("model", "name", "some/model"),
        "--kl": ("train", "kl_weight", 0.5),
        "--iterations": ("runtime", "iterations", 9),
        "--device": ("runtime", "device", "mps"),
        "--keep-rollouts": ("runtime", "keep_rollouts", 2),
        "--keep-checkpoints": ("runtime", "keep_checkpoints", 3),
    }
    given = [str(word) for flag, (_, _, value) in flags.items() for word in (flag, value)]
    shown = succeed(capsys, "loop", "--config", settings, "--dry-run", "--json", "--seed", "3", *given).json_line()[
        "config"
    ]
    assert {flag: shown[section][key] for flag, (section, key, _) in flags.items()} == {
        flag: value for flag, (_, _, value) in flags.items()
    }
    assert shown["seed"] == 3


# Inspect


@pytest.fixture(scope="module")
def finished(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seven iterations to look at."""
    from rlcm_cli.cli.app import main

    folder = tmp_path_factory.mktemp("finished")
    settings = write_settings(folder, tiny_lcm)
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--config", str(settings), "--run", str(folder / "run"), "--iterations", "7", "--quiet"])
    assert not leaving.value.code
    return folder / "run"


def test_inspect_of_a_run_is_a_table_or_json(capsys, monkeypatch, finished):
    monkeypatch.setenv("COLUMNS", "120")
    described = succeed(capsys, "inspect", finished, "--json").json_line()
    assert described["kind"] == "run"
    assert described["checkpoints"] == list(range(8))
    table = succeed(capsys, "inspect", finished).out
    rows = dict(line.strip().split("  ", 1) for line in table.splitlines())
    rows = {key: value.strip() for key, value in rows.items()}
    assert (rows["task"], rows["iterations trained"], rows["checkpoints"]) == ("compression", "7", "0 to 7")
    assert rows["rollouts"] == "2 older ones, and"
    assert rows["rollout 6"].startswith("shards sampled 2/2, scored: compressibility-")
    assert "rollout 1" not in rows
    assert rows["size"].endswith(("kB", "MB"))


def test_inspect_of_a_shard_a_checkpoint_and_an_adapter(capsys, finished):
    shard = succeed(capsys, "inspect", finished / "rollouts/000000/shard-00000-of-00002.safetensors", "--json")
    assert (shard.json_line()["kind"], shard.json_line()["rows"]) == ("rollout", 2)
    checkpoint = succeed(capsys, "inspect", finished / "checkpoints/000003", "--json").json_line()
    assert (checkpoint["kind"], checkpoint["number"]) == ("checkpoint", 3)
    adapter = succeed(capsys, "inspect", finished / "checkpoints/000003" / LORA_FILE, "--json").json_line()
    assert (adapter["rank"], adapter["alpha"], adapter["digest"]) == (2, 4, checkpoint["policy_digest"])


@pytest.mark.parametrize(
    ("place", "row"),
    [
        ("rollouts/000000/shard-00000-of-00002.safetensors", "uint8 [2, 3, 16, 16]"),
        ("checkpoints/000003", "to_k, to_out.0, to_q, to_v"),
        (f"checkpoints/000003/{LORA_FILE}", "to_k, to_out.0, to_q, to_v"),
    ],
)
def test_inspect_of_a_file_is_a_table_for_people(capsys, finished, place, row):
    assert row in succeed(capsys, "inspect", finished / place).out


@pytest.mark.parametrize(("place", "status"), [("gone", 4), ("metrics.jsonl", 2), ("rollouts", 2)])
def test_inspect_of_anything_else_is_refused(capsys, finished, place, status):
    outcome = rlcm(capsys, "inspect", finished / place)
    assert outcome.status == status
    assert outcome.err.startswith(f"rlcm: {finished / place}: ")


def test_verify_is_for_whole_runs(capsys, finished):
    outcome = rlcm(capsys, "inspect", finished / "checkpoints/000003", "--verify")
    assert (outcome.status, "--verify needs a run directory" in outcome.err) == (2, True)
