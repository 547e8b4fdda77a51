"""Objectives that denoise final latents: what they cost, and that a flow matching model learns by them."""

from __future__ import annotations

import pytest
from family_runs import describe_family_run
from model_helpers import load_tiny
from tiny_sana import build_sana

from rlcm_cli.cli.app import main
from rlcm_cli.config import parse_config
from rlcm_cli.objectives import OBJECTIVES, Need
from rlcm_cli.objectives._denoising import count_forwards

KINDS = [kind for kind, one in OBJECTIVES.items() if Need.FINAL_LATENTS in one.needs]


@pytest.fixture(scope="module")
def flow_model(tmp_path_factory):
    return build_sana(tmp_path_factory.mktemp("models") / "sana")


@pytest.mark.parametrize(("times", "kl", "forwards"), [(1, 0, 4), (3, 0, 12), (3, 1, 15), (9, 0, 16)])
def test_a_sample_costs_what_its_times_do(times, kl, forwards):
    values = {"task": "mine", "rewards": {"compressibility": 1.0}, "objective": {"kind": "nft", "times": times}}
    config = parse_config({**values, "sample": {"steps": 4}, "train": {"kl_weight": kl}})
    assert count_forwards(config, others=1) == forwards


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_matching_model_learns_by_it(flow_model, tmp_path, kind):
    """Without any noise while drawing."""
    options = describe_family_run(tmp_path, flow_model, load_tiny(flow_model))
    settings = ["--set=sampler.eta=0", "--set=sample.group_size=2", f"--objective={kind}", f"--run={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--no-cache", "--quiet", *map(str, options), *settings])
    assert not leaving.value.code
    assert (tmp_path / "run" / "checkpoints" / "000001" / "pytorch_lora_weights.safetensors").exists()
