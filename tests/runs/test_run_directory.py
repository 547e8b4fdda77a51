import json
import subprocess
import sys

import pytest
from conftest import edit_config
from phase_runs import copy_run, make_config, raw_bytes

from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError, CorruptFileError, FormatVersionError, RunMismatchError
from rlcm_cli.processes.worker import Worker, parse_worker
from rlcm_cli.prompts import load_prompts
from rlcm_cli.runs import run as run_module
from rlcm_cli.runs.inputs import begin_inputs
from rlcm_cli.runs.policy import start_run
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.inputs import read_inputs
from rlcm_cli.store.quarantine import quarantine


def with_runtime(config: Config, **changes):
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=changes)})


def test_a_run_keeps_its_configuration_and_the_versions_it_began_with(tiny_config, tmp_path):
    create_run(tmp_path / "run", tiny_config)
    assert open_run(tmp_path / "run").config == tiny_config
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["format_version"] == 1
    assert {"torch", "diffusers", "peft", "safetensors"} <= record["versions"].keys()


def test_every_runtime_setting_may_change(tiny_config, tmp_path):
    create_run(tmp_path, tiny_config)
    before = raw_bytes(tmp_path)
    changes = {
        "iterations": 9,
        "device": "auto",
        "tf32": not tiny_config.runtime.tf32,
        "micro_batch_size": 1,
        "gradient_checkpointing": True,
        "offload": True,
        "memory_budget": "8GB",
        "shard_weights": True,
        "keep_rollouts": 1,
        "stop_when_flat": 3,
        "keep_checkpoints": 2,
        "log_with": ("tensorboard",),
    }
    assert changes.keys() == type(tiny_config.runtime).model_fields.keys()
    changed = with_runtime(tiny_config, **changes)
    assert create_run(tmp_path, changed).config == changed
    assert raw_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("sections", "difference"),
    [
        ({"seed": 7}, "seed: 0 → 7"),
        ({"sample": {"samples": 16}}, "sample.samples: 8 → 16"),
        ({"train": {"learning_rate": 0.5}}, "train.learning_rate: 0.001 → 0.5"),
        ({"lora": {"rank": 3}}, "lora.rank: 2 → 3"),
        ({"rewards": {"incompressibility": 1.0}}, "rewards.incompressibility: null → 1.0"),
        ({"evaluate": {"prompts": 4}}, "evaluate.prompts: 3 → 4"),
        ({"prompts": {"held_out_fraction": 0.5}}, "prompts.held_out_fraction: 0.1 → 0.5"),
    ],
)
def test_no_other_setting_may_change_and_the_difference_is_shown(tiny_lcm, tmp_path, sections, difference):
    create_run(tmp_path, make_config(tiny_lcm))
    before = raw_bytes(tmp_path)
    with pytest.raises(RunMismatchError) as caught:
        create_run(tmp_path, make_config(tiny_lcm, **sections))
    message = str(caught.value)
    assert difference in message
    assert message.count(" → ") == 1
    assert "choose another --run" in message
    assert "iterations" in message
    assert raw_bytes(tmp_path) == before


def test_a_used_directory_that_is_no_run_is_refused(tiny_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and no run directory; choose another --run"):
        create_run(tmp_path, tiny_config)
    assert raw_bytes(tmp_path) == {"thesis.tex": b"mine"}


def test_what_a_killed_or_a_writing_process_left_is_no_hindrance(tiny_config, tmp_path):
    (tmp_path / ".config.json.77-abcdef.tmp").write_text("half")
    create_run(tmp_path, tiny_config)
    assert open_run(tmp_path).config == tiny_config


@pytest.mark.parametrize("seed", [0, 1])
def test_of_two_processes_the_first_fixes_the_configuration(tiny_lcm, tiny_config, tmp_path, monkeypatch, seed):
    publish = run_module.publish_config

    def another_process_is_quicker(layout, config_json, versions):
        publish(layout, make_config(tiny_lcm, seed=seed).to_json(), versions)
        publish(layout, config_json, versions)

    monkeypatch.setattr(run_module, "publish_config", another_process_is_quicker)
    if seed == tiny_config.seed:
        create_run(tmp_path, tiny_config)
    else:
        with pytest.raises(RunMismatchError, match="seed: 1 → 0"):
            create_run(tmp_path, tiny_config)
    assert open_run(tmp_path).config.seed == seed


def test_what_a_process_that_came_second_began_with_does_not_stay(tiny_lcm, tiny_config, tmp_path, monkeypatch):
    publish, second = run_module.publish_config, make_config(tiny_lcm, prompts={"source": "imagenet_animals"})

    def be_joined(layout, config_json, versions):
        begin_inputs(layout, second)
        publish(layout, config_json, versions)

    monkeypatch.setattr(run_module, "publish_config", be_joined)
    layout = create_run(tmp_path, tiny_config).layout
    expected = {"simple_animals": load_prompts("simple_animals")}
    assert read_inputs(layout).prompts == expected
    begin_inputs(layout, second)
    assert read_inputs(layout).prompts == expected


def test_of_processes_that_start_together_only_those_of_the_first_go_on(tiny_lcm, tmp_path):
    script = (
        "import sys, time, pathlib\n"
        "from rlcm_cli.config import parse_config\n"
        "from rlcm_cli.errors import RunMismatchError\n"
        "from rlcm_cli.runs.run import create_run, open_run\n"
        "import json\n"
        "folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "config = parse_config(json.loads(sys.argv[3]))\n"
        "(folder / f'ready-{name}').touch()\n"
        "while not (folder / 'go').exists(): time.sleep(0.0005)\n"
        "try: create_run(folder / 'run', config)\n"
        "except RunMismatchError: print('refused')\n"
        "else: print('ok')\n"
    )
    seeds = {"a": 0, "b": 1}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", script, tmp_path, name, make_config(tiny_lcm, seed=seed).model_dump_json()],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, seed in seeds.items()
    }
    while len(list(tmp_path.glob("ready-*"))) < len(processes):
        assert all(process.poll() is None for process in processes.values())
    (tmp_path / "go").touch()
    answers = {name: process.communicate()[0].strip() for name, process in processes.items()}
    winner = open_run(tmp_path / "run").config.seed
    assert answers == {name: "ok" if seed == winner else "refused" for name, seed in seeds.items()}


def test_a_damaged_configuration_is_named_and_made_again_after_quarantine(finished_run, tmp_path):
    run = copy_run(finished_run, tmp_path / "run")
    original = run.layout.config.read_text()
    run.layout.config.write_text(original[:-30])
    with pytest.raises(CorruptFileError, match=r"config\.json: is not JSON .*rlcm quarantine "):
        open_run(run.layout.root)
    quarantine(run.layout.config)
    create_run(run.layout.root, run.config)
    assert run.layout.config.read_text() == original


def test_a_configuration_of_the_future_is_refused(tiny_config, tmp_path):
    run = create_run(tmp_path, tiny_config)
    record = json.loads(run.layout.config.read_text())
    run.layout.config.write_text(json.dumps({**record, "format_version": 2}))
    for act in (lambda: open_run(tmp_path), lambda: create_run(tmp_path, tiny_config)):
        with pytest.raises(FormatVersionError, match="has format version 2"):
            act()


def test_a_configuration_with_an_unknown_key_names_the_file(tiny_config, tmp_path):
    run = create_run(tmp_path, tiny_config)
    edit_config(run.layout.root, lambda config: config["train"].update(optimism=1))
    with pytest.raises(ConfigError, match=r"config\.json: unknown key 'train\.optimism'"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    "sections",
    [
        {"rewards": {"no-such-reward": 1.0}},
        {"prompts": {"source": "no-such-prompts"}},
        {"lora": {"start": "no/such/lora"}},
        {"sampler": {"kind": "lcm", "original_steps": 2000}},
    ],
)
def test_a_configuration_that_cannot_be_leaves_no_directory(tiny_lcm, tmp_path, sections):
    with pytest.raises(ConfigError):
        start_run(tmp_path / "run", make_config(tiny_lcm, **sections))
    assert not (tmp_path / "run").exists()


def array_environment(first, last, step, own, count):
    told = {"ID": own, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


class TestWorker:
    @pytest.mark.parametrize(("text", "worker"), [(None, Worker(0, 1)), ("0/1", Worker(0, 1)), ("2/5", Worker(2, 5))])
    def test_written_out(self, text, worker):
        assert parse_worker(text, {}) == worker

    @pytest.mark.parametrize("text", ["", "1", "/", "a/b", "1/1", "2/1", "-1/2", "0/0", "1/2/3", "0.5/2"])
    def test_written_wrongly(self, text):
        with pytest.raises(ConfigError, match=r"--worker .*: write K/N with K from 0 to N − 1"):
            parse_worker(text, {})

    @pytest.mark.parametrize(
        ("environment", "worker"),
        [
            ({"RANK": "1", "WORLD_SIZE": "4"}, Worker(1, 4)),
            ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, Worker(2, 3)),
            ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2"}, Worker(0, 2)),
            ({"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "9"}, Worker(1, 4)),
        ],
    )
    def test_of_torchrun_and_slurm(self, environment, worker):
        assert parse_worker("auto", environment) == worker

    @pytest.mark.parametrize("environment", [{}, {"RANK": "1"}, {"WORLD_SIZE": "4"}])
    def test_of_no_launcher(self, environment):
        with pytest.raises(ConfigError, match="none of RANK, SLURM_ARRAY_TASK_ID and SLURM_PROCID is set"):
            parse_worker("auto", environment)

    @pytest.mark.parametrize(
        ("numbers", "own", "worker"),
        [
            ((1, 4, 1), 4, Worker(3, 4)),
            ((1, 4, 1), 1, Worker(0, 4)),
            ((0, 8, 4), 8, Worker(2, 3)),
            ((10, 16, 3), 13, Worker(1, 3)),
            ((5, 5, 1), 5, Worker(0, 1)),
        ],
    )
    def test_an_array_may_start_and_step_as_it_likes(self, numbers, own, worker):
        assert parse_worker("auto", array_environment(*numbers, own, worker.count)) == worker

    @pytest.mark.parametrize(
        ("numbers", "own", "count"),
        [((1, 7, 1), 3, 3), ((0, 8, 4), 3, 3), ((0, 2, 1), 7, 3), ((0, 2, 0), 1, 3), ((0, 2, "x"), 1, 3)],
    )
    def test_an_array_with_gaps_is_refused_by_the_names_of_its_variables(self, numbers, own, count):
        with pytest.raises(
            ConfigError, match=rf"SLURM_ARRAY_TASK_ID={own}, SLURM_ARRAY_TASK_COUNT={count}.*--worker K/N"
        ):
            parse_worker("auto", array_environment(*numbers, own, count))

    def test_an_array_that_does_not_say_where_it_starts_counts_from_0(self):
        with pytest.raises(ConfigError, match=r"--worker 3/3: write K/N"):
            parse_worker("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3"})

    def test_the_workers_of_a_count_take_every_shard_once(self):
        for shard in range(10):
            assert sum(Worker(index, 3).takes(shard) for index in range(3)) == 1
