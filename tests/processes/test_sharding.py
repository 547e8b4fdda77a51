"""Frozen weights shared by two processes: they compute what whole ones do, whatever each process has to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import succeed
from fork_server import launch_together
from phase_runs import fingerprint, make_config
from safetensors.torch import load_file
from tiny_pipelines import BUILDERS
from torch import nn

from rlcm_cli.cli.location import Location
from rlcm_cli.cli.loop import check_shared
from rlcm_cli.config import override_config
from rlcm_cli.core import device as device_module
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.families import FAMILIES
from rlcm_cli.processes.job import Processes
from rlcm_cli.processes.sharding import shard_weights
from rlcm_cli.runs.policy import choose_sharding, load_policy_model
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.checkpoint import read_weights
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import read_images

HERE = Path(__file__).parent
MODELS = ("unet", "transformer")


@pytest.fixture(scope="module")
def driven(tiny_lcm, tmp_path_factory):
    """Give the driver's report and the folder of its runs."""
    folder = tmp_path_factory.mktemp("sharding")
    transformer = BUILDERS["flux"]["schnell"](folder / "flux")
    leader, other = launch_together(
        HERE / "sharding_driver.py", [tiny_lcm, transformer, folder], folder / "output", {"TQDM_DISABLE": "1"}
    )
    assert (leader.status, other.status) == (0, 0), leader.err + other.err
    assert "Warning" not in leader.err + other.err
    return json.loads(leader.out), folder


class TestTwoProcesses:
    @pytest.mark.parametrize("name", MODELS)
    def test_hold_half_of_the_frozen_weights_each(self, driven, name):
        found = driven[0][name]
        assert found["all sharded"]
        assert found["trained whole"]
        assert 0.5 <= found["held"] < 0.55  # odd sizes are rounded up
        assert found["blocks"] > 2
        assert found["dropped"], "a block stayed gathered"
        whole, sharded = found["digests"]
        assert whole == sharded

    @pytest.mark.parametrize("name", MODELS)
    def test_predict_the_same_bytes_with_different_numbers_of_calls(self, driven, name):
        assert driven[0][name]["predictions"] == [True, True]

    @pytest.mark.parametrize(("name", "rounding"), [("unet", 1e-6), ("transformer", 0.0)])
    def test_have_the_gradient_of_whole_weights(self, driven, name, rounding):
        # A U-Net's gradients meet in another order.
        plain, checkpointed = driven[0][name]["gradients"]
        assert max(plain, checkpointed) <= rounding

    def test_make_a_transformers_run_to_the_byte(self, driven):
        whole, sharded = (fingerprint(driven[1] / f"transformer-{kind}") for kind in ("whole", "sharded"))
        assert whole.pop("config.json") != sharded.pop("config.json")
        assert sharded == whole
        metrics = json.loads((driven[1] / "transformer-sharded" / "metrics" / "000001.json").read_text())
        assert 0 <= metrics["ratio_drift"] < 2e-6

    @pytest.mark.parametrize("other", ["whole", "folded"])
    def test_make_a_unets_run_but_for_rounding(self, driven, other):
        expected, found = (open_run(driven[1] / f"unet-{kind}") for kind in (other, "sharded"))
        first = [fingerprint(run.layout.root / "rollouts" / "000000") for run in (expected, found)]
        assert first[0] == first[1]
        weights = [
            torch.cat([tensor.flatten() for _, tensor in sorted(read_weights(run.layout, number).items())])
            for run, number in ((expected, 0), (expected, 1), (found, 1), (expected, 2), (found, 2))
        ]
        start, one, shared_one, two, shared_two = weights
        assert 0 < (shared_one - one).norm() <= min(1e-6 * one.norm(), 2e-5 * (one - start).norm())
        assert (shared_two - two).norm() <= min(1e-6 * two.norm(), 2e-5 * (two - start).norm())
        pictures = []
        for run in (expected, found):
            manifest = read_manifest(run.layout.manifest(1))
            shards = [read_images(run.layout, manifest, number).images for number in range(3)]
            pictures.append(np.concatenate(shards).astype(int))
        assert np.abs(pictures[0] - pictures[1]).max() <= 1

    def test_leave_a_run_that_one_process_draws_and_continues_whole(self, driven, tmp_path, capsys):
        root = shutil.copytree(driven[1] / "unet-sharded", tmp_path / "run")
        lora = load_file(open_run(root).layout.checkpoint(2) / "pytorch_lora_weights.safetensors")
        assert all(tensor.numel() for tensor in lora.values())
        succeed(capsys, "generate", "--lora", root, "--prompt", "cat", "--count", "1", "--out", tmp_path / "images")
        assert list((tmp_path / "images").glob("*.png"))
        succeed(capsys, "evaluate", "--run", root, "--checkpoint", "1", "--set", "runtime.shard_weights=false")
        assert open_run(root).layout.evaluation(1).exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILDERS)
def test_every_familys_models_compute_what_whole_ones_do(kind, tmp_path):
    for name, build in BUILDERS[kind].items():
        build(tmp_path / "models" / kind / name)
    leader, other = launch_together(HERE / "families_driver.py", [tmp_path / "models"], tmp_path / "output")
    assert (leader.status, other.status) == (0, 0), leader.err + other.err
    report = json.loads(leader.out)
    assert len(report) == 2 * len(BUILDERS[kind])
    for name, found in report.items():
        assert found["predictions"] == [True, True], name
        rounding = {"float32": 1e-6, "bfloat16": 2e-2}[name.split()[-1]]
        assert max(found["gradients"]) <= (rounding if FAMILIES[kind].denoiser == "unet" else 0.0), name


class TestAccidents:
    @pytest.mark.parametrize(
        ("accident", "line"),
        [
            ("broken", "reward 'compressibility': no longer works"),
            ("stuck", "a picture could not be drawn"),
        ],
    )
    def test_an_error_of_one_process_is_the_only_line(self, tiny_lcm, tmp_path, accident, line):
        run = create_run(tmp_path / "run", make_config(tiny_lcm, runtime={"shard_weights": True}))
        ends = launch_together(
            HERE / "process_failure.py", [accident, "loop", "--run", run.layout.root], tmp_path / "output"
        )
        assert all(end.status != 0 for end in ends)
        lines = [line for end in ends for line in end.err.splitlines()]
        assert [line for line in lines if line.startswith("rlcm: ")] == [f"rlcm: {line}"]
        assert not any("Traceback" in line for line in lines)

    def test_a_killed_process_ends_the_other_in_one_line(self, tiny_lcm, tmp_path):
        run = create_run(tmp_path / "run", make_config(tiny_lcm, runtime={"shard_weights": True}))
        left, killed = launch_together(
            HERE / "process_failure.py", ["killed", "loop", "--run", run.layout.root], tmp_path / "output"
        )
        assert killed.status == -9
        [line] = [line for line in left.err.splitlines() if line.startswith("rlcm: ")]
        assert "is gone" in line
        assert "Traceback" not in left.err


class TestRefusals:
    def test_one_process_has_nobody_to_share_with(self, tiny_lcm):
        config = make_config(tiny_lcm, runtime={"shard_weights": True})
        with pytest.raises(ConfigError, match="this is a single process") as refusal:
            load_policy_model(config)
        assert "runtime.shard_weights=false" in str(refusal.value)

    def test_other_devices(self, tiny_lcm, monkeypatch):
        config = make_config(tiny_lcm, runtime={"shard_weights": True, "device": "auto"})
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert device_module.select_device("auto").type == "mps"
        with pytest.raises(ConfigError, match="mps cannot"):
            choose_sharding(config, Processes(0, 2))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("train.parameters", "full"),
            ("model.quantize", "8bit"),
            ("runtime.offload", "true"),
            ("runtime.memory_budget", "8GB"),
        ],
    )
    def test_settings_that_need_whole_weights(self, tiny_lcm, key, value):
        config = override_config(make_config(tiny_lcm), assignments=[f"{key}={value}"])
        with pytest.raises(ConfigError, match=f"^runtime.shard_weights does not go with {key}[^;]*; remove one"):
            override_config(config, assignments=["runtime.shard_weights=true"])

    def test_ray(self, tiny_lcm, tmp_path):
        config = make_config(tiny_lcm, runtime={"shard_weights": True})
        with pytest.raises(ConfigError, match="--executor ray: its tasks hold whole models"):
            check_shared(Location(tmp_path), Processes(), config)

    def test_a_denoiser_without_known_blocks(self):
        with pytest.raises(ModelError, match="Sequential does not say what its blocks are"):
            shard_weights(nn.Sequential(nn.Linear(2, 2)), torch.device("cpu"), Processes(0, 2))
