"""Rewards on the command line: which, with what weights, whose code, from the cache or not, monitored, joint."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import checkpoints, refuse, rlcm, snapshot, succeed, tensor_files, write_settings
from PIL import Image
from safetensors.torch import load_file

from rlcm_cli.cli.asked import parse_rewards
from rlcm_cli.errors import ConfigError, MissingFileError, RunMismatchError, StorageFullError
from rlcm_cli.rewards import REWARDS, RewardEntry

CODE = """
from pathlib import Path

Path(__file__).with_name("it-ran").touch()

def warmth(images, prompts, metadata):
    return images[:, 0].float().mean((1, 2)) - images[:, 2].float().mean((1, 2))
"""


@pytest.fixture
def settings(tiny_lcm: Path, tmp_path: Path) -> Path:
    """A file for --config: two iterations of the tiny model."""
    return write_settings(tmp_path, tiny_lcm)


@pytest.fixture
def sampled(capsys: pytest.CaptureFixture[str], settings: Path, tmp_path: Path) -> Path:
    """A run whose first rollout is drawn."""
    succeed(capsys, "sample", "--config", settings, "--run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    return tmp_path / "mine.py"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the reward `counting` is asked about."""

    batches: list[int] = []

    def count(images: torch.Tensor, prompts: object, metadata: object) -> torch.Tensor:
        batches.append(len(images))
        return images.float().mean((1, 2, 3))

    # A version of its own each test: the cache of these tests is one.
    version = asked_versions.pop()
    monkeypatch.setitem(REWARDS, "counting", RewardEntry(lambda: count, "", "", version=version))
    return batches


asked_versions = list(range(1000, 2000))


def folders(run: Path, iteration: int = 0) -> dict[str, int]:
    """Number of scored shards by the slug of the reward."""
    return {
        folder.name.rpartition("-")[0]: len(list(folder.glob("*.safetensors")))
        for folder in (run / f"rollouts/{iteration:06d}/rewards").glob("*")
    }


# --reward NAME[=WEIGHT]


@pytest.mark.parametrize(
    ("texts", "rewards"),
    [
        ([], None),
        (["aesthetic"], {"aesthetic": 1.0}),
        (["aesthetic=1", "compressibility=0.2"], {"aesthetic": 1.0, "compressibility": 0.2}),
        (["compressibility=-1e-3"], {"compressibility": -1e-3}),
        (["my/file.py:warmth=2"], {"my/file.py:warmth": 2.0}),
        (["a=b/file.py:warmth=2"], {"a=b/file.py:warmth": 2.0}),
        (["http://host:8000/aesthetic"], {"http://host:8000/aesthetic": 1.0}),
        (["http://host:8000/aesthetic=0.5"], {"http://host:8000/aesthetic": 0.5}),
    ],
)
def test_a_reward_is_a_name_and_a_weight(texts, rewards):
    assert parse_rewards(texts) == rewards


@pytest.mark.parametrize("text", ["aesthetic=much", "aesthetic=", "aesthetic=1,5", "my/file.py:warmth=x"])
def test_a_weight_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"is not a weight; write NAME or NAME=WEIGHT, for example"):
        parse_rewards([text])


@pytest.mark.parametrize(
    ("rewards", "saying"),
    [
        (["compressibility=nan"], ("rewards.compressibility", "NaN")),
        (["compressibility=0"], ("weight 0", "nothing to train for")),
        (["compresibility=1"], ("did you mean 'compressibility'?",)),
        (["=0.5"], ("no reward",)),
    ],
)
def test_a_reward_that_cannot_be_is_refused(capsys, settings, rewards, saying):
    given = [word for reward in rewards for word in ("--reward", reward)]
    refuse(capsys, ConfigError, "loop", "--config", settings, "--dry-run", *given, saying=saying)


def test_rewards_and_what_is_monitored_reach_the_configuration(capsys, settings):
    shown = succeed(
        capsys,
        *["loop", "--config", settings, "--dry-run", "--json", "--reward", "sharpness=0.5", "--reward", "brightness"],
        *["--monitor", "recognition", "--monitor", "recognition", "--on-hacking", "stop", "--set", "combine=sum"],
    ).json_line()["config"]
    assert (shown["rewards"], shown["combine"]) == ({"sharpness": 0.5, "brightness": 1.0}, "sum")
    assert (shown["monitor"]["rewards"], shown["monitor"]["on_hacking"]) == (["recognition"], "stop")
    assert shown["monitor"]["window"] == 10


# Scoring what is there


def test_a_finished_run_is_scored_with_another_reward_again_and_again(capsys, settings, tmp_path, asked):
    run = tmp_path / "run"
    succeed(capsys, "loop", "--config", settings, "--run", run)
    before = snapshot(run)
    said = succeed(capsys, "score", "--run", run, "--reward", "counting").out
    assert "scored with counting" in said
    assert asked == [2, 2, 2, 2]
    after = snapshot(run)
    assert {name: after[name] for name in before} == before
    assert [folders(run, iteration)["counting"] for iteration in (0, 1)] == [2, 2]
    assert "nothing to do" in succeed(capsys, "score", "--run", run, "--reward", "counting").out
    assert snapshot(run) == after
    assert len(asked) == 4
    succeed(capsys, "loop", "--run", run)  # which has nothing to do with that reward
    assert snapshot(run) == after


def test_one_rollout_alone_is_scored(capsys, settings, tmp_path, asked):
    run = tmp_path / "run"
    succeed(capsys, "loop", "--config", settings, "--run", run)
    succeed(capsys, "score", "--run", run, "--reward", "counting", "--rollout", "1")
    assert ("counting" in folders(run, 0), "counting" in folders(run, 1)) == (False, True)
    refuse(
        capsys, MissingFileError, "score", "--run", run, "--reward", "counting", "--rollout", "9", saying=("000009",)
    )


def test_what_this_machine_has_scored_before_is_not_scored_again_unless_asked(capsys, sampled, asked, tmp_path):
    copies = []
    for number, options in enumerate([[], [], ["--no-cache"]]):
        copies.append(tmp_path / f"copy-{number}")
        (copies[-1] / "rollouts").mkdir(parents=True)
        (copies[-1] / "config.json").write_bytes((sampled / "config.json").read_bytes())
        _copy_rollout(sampled, copies[-1])
        succeed(capsys, "score", "--run", copies[-1], "--reward", "counting", *options)
    assert asked == [2, 2, 2, 2]  # the first time and the last
    assert tensor_files(copies[0]) == tensor_files(copies[1]) == tensor_files(copies[2])


def _copy_rollout(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source / "rollouts/000000", target / "rollouts/000000")


def test_a_damaged_cache_is_one_line_and_can_be_done_without(capsys, monkeypatch, sampled, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/scores.sqlite3").write_bytes(b"no table at all, and longer than a header of SQLite" * 9)
    monkeypatch.setenv("RLCM_CACHE", str(tmp_path / "cache"))
    refuse(
        capsys,
        StorageFullError,
        *["score", "--run", sampled],
        saying=(str(tmp_path / "cache/scores.sqlite3"), "cannot be used", "--no-cache"),
    )
    succeed(capsys, "score", "--run", sampled, "--no-cache")


def test_settings_of_a_reward_are_set_for_one_scoring(capsys, sampled):
    asked = ["score", "--run", sampled, "--reward", "recognition", "--set", "reward_settings.recognition.floor=-2.5"]
    succeed(capsys, *asked)
    (file,) = (sampled / "rollouts/000000/rewards").glob("recognition-*/shard-00000-of-00002.safetensors")
    assert load_file(file)["reward"].min() >= -2.5
    config = json.loads((sampled / "config.json").read_text())["config"]
    assert (config["reward_settings"], config["monitor"]["rewards"]) == ({}, [])


def test_scoring_is_no_way_to_change_the_run(capsys, sampled):
    refuse(capsys, ConfigError, "score", "--run", sampled, "--set", "seed=3", saying=("seed: 0 → 3",))


def test_a_reward_of_sets_needs_groups_before_anything_is_written(capsys, settings, tmp_path):
    run = tmp_path / "run"
    words = ("'diversity' compares the images of a prompt", "sample.group_size (now 1)")
    for command in ("loop", "sample"):
        refuse(capsys, ConfigError, command, "--config", settings, "--run", run, "--reward", "diversity", saying=words)
    refuse(capsys, ConfigError, "loop", "--config", settings, "--run", run, "--monitor", "diversity", saying=words)
    assert not run.exists()


# Code


def test_code_that_a_run_names_is_not_run_unless_allowed(capsys, settings, code, tmp_path):
    run, name = tmp_path / "run", f"{code}:warmth"
    succeed(capsys, "sample", "--config", settings, "--run", run, "--reward", name)
    for command in ("score", "evaluate", "loop"):
        line = refuse(capsys, ConfigError, command, "--run", run, saying=(str(run), name, "--allow-code"))
        assert "read it" in line
    # Nor is it, where other rewards are asked for; those need no leave.
    succeed(capsys, "score", "--run", run, "--reward", "compressibility")
    assert folders(run) == {"compressibility": 2}
    assert not (tmp_path / "it-ran").exists()
    succeed(capsys, "score", "--run", run, "--allow-code")
    assert (tmp_path / "it-ran").exists()
    assert folders(run) == {"compressibility": 2, "warmth": 2}


def test_code_that_the_command_line_names_is_run(capsys, settings, code, tmp_path):
    run, name = tmp_path / "run", f"{code}:warmth"
    succeed(capsys, "loop", "--config", settings, "--run", run, "--iterations", "1", "--reward", name)
    assert checkpoints(run) == [0, 1]
    succeed(capsys, "loop", "--run", run, "--iterations", "2", "--reward", name)
    succeed(capsys, "score", "--run", run, "--reward", name, "--rollout", "0")
    other = tmp_path / "other"
    succeed(capsys, "sample", "--config", settings, "--run", other)
    succeed(capsys, "loop", "--run", other, "--iterations", "1", "--monitor", name)
    assert folders(other) == {"compressibility": 2, "warmth": 2}


def test_code_in_a_file_for_config_needs_leave_too(capsys, settings, code, tmp_path):
    text = settings.read_text().replace("compressibility = 1.0", f'"{code}:warmth" = 1.0')
    settings.write_text(text)
    run = tmp_path / "run"
    refuse(capsys, ConfigError, "loop", "--config", settings, "--run", run, saying=("--allow-code", "warmth"))
    assert not run.exists()
    assert not (tmp_path / "it-ran").exists()
    succeed(capsys, "loop", "--config", settings, "--run", run, "--iterations", "1", "--allow-code")


def test_code_that_changed_is_told_and_refused_unless_allowed(capsys, settings, code, tmp_path):
    run, name = tmp_path / "run", f"{code}:warmth"
    loop = ["loop", "--run", run, "--reward", name]
    succeed(capsys, *loop, "--config", settings, "--iterations", "1")
    code.write_text(CODE.replace("[:, 0]", "[:, 1]") + "# another\n", encoding="utf-8")
    before = snapshot(run)
    for command in ("loop", "evaluate", "score"):
        words = [command, "--run", run, "--allow-code", *(["--iterations", "2"] if command == "loop" else [])]
        refuse(
            capsys,
            RunMismatchError,
            *words,
            saying=(f"the code of reward {name} changed", "--allow-changed-code"),
        )
    assert snapshot(run) == before
    succeed(capsys, *loop, "--iterations", "2", "--allow-changed-code")
    succeed(capsys, *loop, "--iterations", "3")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, second, third = (row["reward_revisions"][name] for row in rows)
    assert first != second == third


def test_a_reward_that_writes_into_its_images_changes_no_other(capsys, settings, tmp_path):
    (tmp_path / "mask.py").write_text(
        "def mask(images, prompts, metadata):\n    images[:] = 255\n    return images.float().mean((1, 2, 3))\n"
    )
    found = []
    for rewards in ([f"{tmp_path}/mask.py:mask", "compressibility"], ["compressibility"]):
        run = tmp_path / f"run-{len(rewards)}"
        given = [word for reward in rewards for word in ("--reward", reward)]
        words = ["--config", settings, "--run", run, "--iterations", "1", "--no-cache", *given]
        succeed(capsys, "loop", *words)
        found.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["rewards"]["compressibility"])
    assert found[0] == found[1]


# Monitoring


def test_a_loop_shows_what_is_monitored_and_draws_the_curves(capsys, settings, tmp_path):
    run = tmp_path / "run"
    said = succeed(capsys, "loop", "--config", settings, "--run", run, "--monitor", "sharpness").out
    assert said.count("monitored: sharpness") == 2
    assert f"{run / 'rewards.png'}: the rewards over the iterations" in said
    assert (run / "rewards.png").read_bytes().startswith(b"\x89PNG")


# Several tasks


@pytest.fixture
def together(tiny_lcm: Path, tmp_path: Path) -> Path:
    """A file for --config beside two presets: the tiny model, and no rewards or prompts."""
    lines = write_settings(tmp_path, tiny_lcm, sample={"samples": 8}).read_text().splitlines()
    dropped = ("task", "[rewards]", "compressibility", "[prompts]", "source")
    path = tmp_path / "together.toml"
    path.write_text("\n".join(line for line in lines if not line.startswith(dropped)) + "\n")
    return path


def test_two_presets_are_trained_together(capsys, together, tmp_path):
    run = tmp_path / "run"
    tasks = ["--task", "compression", "--task", "incompression"]
    said = succeed(capsys, "loop", *tasks, "--config", together, "--run", run, "--iterations", "1").out
    assert f"run {run}: task compression+incompression" in said
    assert "incompression " in said
    config = json.loads((run / "config.json").read_text())["config"]
    assert {name: task["rewards"] for name, task in config["tasks"].items()} == {
        "compression": {"compressibility": 1.0},
        "incompression": {"incompressibility": 1.0},
    }
    shards = sorted((run / "rollouts/000000").glob("*.safetensors"))
    assert [task for file in shards for task in load_file(file)["task_index"].tolist()] == [0] * 4 + [1] * 4
    rewards = {
        folder.name.rpartition("-")[0]: [
            sample
            for file in sorted(folder.glob("*.safetensors"))
            for sample in load_file(file)["sample_index"].tolist()
        ]
        for folder in (run / "rollouts/000000/rewards").iterdir()
    }
    assert rewards == {"compressibility": [0, 1, 2, 3], "incompressibility": [4, 5, 6, 7]}

    succeed(capsys, "loop", *tasks, "--config", together, "--run", run, "--iterations", "2")
    succeed(capsys, "loop", "--run", run, "--iterations", "3")
    straight = tmp_path / "straight"
    succeed(capsys, "loop", *tasks, "--config", together, "--run", straight, "--iterations", "3")
    for part in ("rollouts", "checkpoints", "evaluations/000003"):
        assert tensor_files(run / part) == tensor_files(straight / part)


def test_without_a_directory_two_presets_have_one_of_their_names(capsys, monkeypatch, together, tmp_path):
    monkeypatch.chdir(tmp_path)
    succeed(capsys, "sample", "--task", "compression", "--task", "incompression", "--config", together)
    assert (tmp_path / "runs/compression+incompression/config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["--reward", "sharpness"], ("--reward sets the rewards of a single task", "tasks.NAME.rewards")),
        (["--set", "rewards={sharpness=1}"], ("rewards and tasks are both set",)),
        (
            ["--set", "sample.group_size=8", "--set", "sample.shards=1"],
            ("2 tasks share the 1 groups", "sample.samples"),
        ),
        (["--task", "compresion"], ("'compresion'", "did you mean 'compression'?")),
    ],
)
def test_several_tasks_that_cannot_be_are_refused(capsys, together, tmp_path, arguments, saying):
    asked = ["loop", "--task", "compression", "--task", "incompression", "--config", together, *arguments]
    refuse(capsys, ConfigError, *asked, "--run", tmp_path / "run", saying=saying)
    assert rlcm(capsys, *asked, "--dry-run").status == ConfigError.exit_code
    assert not (tmp_path / "run").exists()


class TestImages:
    def test_are_exported_with_prompts_seeds_and_every_reward_they_were_given(self, capsys, sampled, tmp_path):
        succeed(capsys, "score", "--run", sampled)
        succeed(capsys, "score", "--run", sampled, "--reward", "brightness")
        done = succeed(capsys, "inspect", sampled, "--images", tmp_path / "images")
        assert "4 images" in done.out
        with (tmp_path / "images" / "images.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        shards = [load_file(path) for path in sorted(sampled.glob("rollouts/000000/shard-*.safetensors"))]
        images = torch.cat([shard["images"] for shard in shards])
        seeds = torch.cat([shard["seed"] for shard in shards]).tolist()
        assert [int(row["seed"]) for row in rows] == seeds
        assert [int(row["sample"]) for row in rows] == list(range(4))
        for row, image in zip(rows, images, strict=True):
            with Image.open(tmp_path / "images" / row["file"]) as picture:
                assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())
            assert row["prompt"].replace(" ", "-") in row["file"]
            (brightness,) = [float(value) for name, value in row.items() if name.startswith("brightness-")]
            assert 0 < brightness < 1
            (size,) = [float(value) for name, value in row.items() if name.startswith("compressibility-")]
            assert size < 0

    def test_of_a_rollout_that_is_not_there_are_refused(self, capsys, sampled, tmp_path):
        command, place = ("inspect", sampled, "--images"), tmp_path / "x"
        refuse(capsys, MissingFileError, *command, place, "--rollout", 7, saying=("there is no such rollout",))
        (tmp_path / "empty").mkdir()
        refuse(
            capsys,
            MissingFileError,
            "inspect",
            tmp_path / "empty",
            "--images",
            place,
            saying=("has no rollout with images",),
        )
        assert not (tmp_path / "x").exists()
