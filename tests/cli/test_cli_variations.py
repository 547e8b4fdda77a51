"""`rlcm loop --seed 1,2` and `--sweep`: several ordinary runs of one command, and what is refused before the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refuse, succeed, write_settings
from compared_runs import write_run

from rlcm_cli.cli.asked import Asked
from rlcm_cli.cli.variations import locate, vary
from rlcm_cli.errors import ConfigError
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics

RATES = "train.learning_rate=1e-3,3e-3"


def names(seeds: str | None = None, *sweeps: str) -> list[str]:
    return [variation.name for variation in vary(Asked(["compression"]), seeds, sweeps)]


@pytest.mark.parametrize(
    ("seeds", "sweeps", "expected"),
    [
        (None, (), [""]),
        ("7", (), [""]),
        ("1, 2,30", (), ["seed-1", "seed-2", "seed-30"]),
        (None, (RATES,), ["learning_rate-1e-3", "learning_rate-3e-3"]),
        (
            "1,2",
            (RATES,),
            [f"learning_rate-{rate}-seed-{seed}" for rate in ("1e-3", "3e-3") for seed in (1, 2)],
        ),
        (
            "4",
            ("a.x=1,2", "b.x=m/one,m/two"),
            ["a.x-1-b.x-one", "a.x-1-b.x-two", "a.x-2-b.x-one", "a.x-2-b.x-two"],
        ),
    ],
)
def test_each_run_has_a_folder_that_says_what_it_is(seeds, sweeps, expected):
    assert names(seeds, *sweeps) == expected


def test_each_run_has_its_seed_and_its_settings():
    asked = Asked(["compression"], assignments=["sample.steps=2"], flags={"model.name": None})
    found = vary(asked, "1,2", [RATES])
    assert [(list(one.asked.assignments), one.asked.flags["seed"]) for one in found] == [
        (["sample.steps=2", f"train.learning_rate={rate}"], seed) for rate in ("1e-3", "3e-3") for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (["--seed", "1,1"], ("--seed 1,1: 1 is there twice",)),
        (["--seed", "1,"], ("--seed 1,: write a whole number from 0, or several such as 1,2,3",)),
        (["--seed", "-1"], ("--seed -1: write",)),
        (["--seed", "one"], ("--seed one: write",)),
        (["--sweep", "train.learning_rate"], ("write KEY=VALUE,VALUE",)),
        (["--sweep", "train.learning_rate=1e-3"], ("has one value; use --set train.learning_rate=1e-3",)),
        (["--sweep", "train.learning_rate=1e-3,"], ("write KEY=VALUE,VALUE",)),
        (["--sweep", "train.learning_rate=1e-3,1e-3"], ("1e-3 is there twice",)),
        (
            ["--sweep", "train.learning_rate=1e-3,0.001"],
            ("learning_rate-1e-3 and learning_rate-0.001", "the same run"),
        ),
        (["--sweep", "runtime.tf32=true,false"], ("tf32-true and tf32-false would be the same run",)),
        (["--sweep", RATES, "--sweep", RATES], ("is given twice",)),
        (["--sweep", RATES, "--set", "train.learning_rate=1"], ("is set by --set, too",)),
        (["--sweep", "sample.steps=2,4", "--steps", "2"], ("is set by its own option, too",)),
        (["--sweep", "seed=1,2"], ("use --seed 1,2",)),
        (["--sweep", "lora.target_modules=['a'],['b']"], ("lists, tables and quotes cannot be swept",)),
        (["--sweep", "train.lr=1,2"], ("unknown key 'train.lr'",)),
        (["--sweep", "train.learning_rate=1e-3,fast"], ("train.learning_rate",)),
    ],
)
def test_nonsense_is_refused_before_the_first_run(capsys, tmp_path, options, saying):
    refuse(capsys, ConfigError, "loop", "--task", "compression", "--run", tmp_path / "runs", *options, saying=saying)
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_ordinary_runs_that_resume_and_compare(capsys, tiny_lcm, tmp_path):
    settings = write_settings(tmp_path, tiny_lcm)
    folder = tmp_path / "runs"
    asked = ["loop", "--config", settings, "--run", folder, "--seed", "1,2"]
    alone = ["loop", "--config", settings, "--run", folder / "seed-2", "--seed", 2]
    succeed(capsys, *alone, "--iterations", 1)
    told = succeed(capsys, *asked, "--iterations", 2, "--json")
    result = told.json_line()
    assert [Path(run["run"]).name for run in result["runs"]] == ["seed-1", "seed-2"]
    assert [run["checkpoint"] for run in result["runs"]] == [2, 2]
    assert "resuming after iteration 1" in told.err  # the second had been interrupted
    assert [json.loads((folder / f"seed-{seed}/config.json").read_text())["config"]["seed"] for seed in (1, 2)] == [
        1,
        2,
    ]
    assert len({read_metrics(RunLayout(folder / f"seed-{seed}"))[0].reward_mean for seed in (1, 2)}) == 2
    assert "nothing left to train" in succeed(capsys, *alone, "--iterations", 2).out  # it is one that can be named
    (method,) = succeed(capsys, "compare", folder, "--out", tmp_path / "out", "--json").json_line()["methods"]
    assert (method["label"], method["seeds"]) == ("runs", [1, 2])
    refuse(
        capsys, ConfigError, "loop", "--config", settings, "--run", folder / "seed-1", "--seed", "3,4",
        saying=("seed-1: is a run, and several seeds or settings get a folder each",),
    )  # fmt: skip


def test_a_dry_run_of_several_prints_each(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # runs are made where the command is started
    asked = ["loop", "--task", "compression", "--seed", "1,2", "--dry-run"]
    shown = succeed(capsys, *asked).out
    assert [line for line in shown.splitlines() if line.startswith("# runs")] == [
        "# runs/compression/seed-1",
        "# runs/compression/seed-2",
    ]
    configs = succeed(capsys, *asked, "--json").json_line()["configs"]
    assert [config["seed"] for config in configs.values()] == [1, 2]


def test_runs_that_are_there_need_no_task(capsys, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"runs/seed-{seed}", [0.0, 1.0], seed=seed)
    asked = ["loop", "--run", tmp_path / "runs", "--iterations", 9, "--dry-run", "--json", "--seed"]
    configs = succeed(capsys, *asked, "1,2").json_line()["configs"]
    assert [(config["seed"], config["runtime"]["iterations"]) for config in configs.values()] == [(1, 9), (2, 9)]
    refuse(capsys, ConfigError, *asked, "1,3", saying=("seed-3: there is no run here, and no task is given",))


def test_folders_on_object_storage_are_named_alike():
    variations = vary(Asked(["compression"]), "1,2", [])
    assert locate("s3://bucket/runs/", variations) == ["s3://bucket/runs/seed-1", "s3://bucket/runs/seed-2"]


def test_processes_of_a_launcher_share_one_run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    refuse(capsys, ConfigError, "loop", "--task", "compression", "--seed", "1,2", saying=("start each run by itself",))
