"""Objectives that denoise final latents: what they cost, and that a flow matching model learns by them."""

from __future__ import annotations

import pytest
import torch
from family_runs import describe_family_run
from model_helpers import load_tiny, shake_lora
from phase_runs import make_config, prepare
from tiny_sana import build_sana

from rlcm_cli.cli.app import main
from rlcm_cli.config import parse_config
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.objectives import OBJECTIVES, Need
from rlcm_cli.objectives._denoising import count_forwards
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.processes.job import Processes
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.store.checkpoint import read_trainer_state

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
def test_the_parts_of_several_processes_add_up(tiny_lcm, tmp_path, kind):
    config = make_config(tiny_lcm, objective={"kind": kind, "times": 2}, sample={"group_size": 2, "staleness": 1})
    run, model = prepare(tmp_path / "run", config)
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    shake_lora(model)
    old_weights = {name: weights * 0.5 for name, weights in lora_parameters(model).items()}
    everything = Minibatch(torch.arange(8), torch.empty(8, 0, dtype=torch.int64))

    def learn(processes: Processes) -> tuple[torch.Tensor, dict[str, float]]:
        weights = torch.linspace(0, 1, 8)
        learner = Learner(model, rollout, weights, config, processes, old_weights=old_weights)
        values = OBJECTIVES[kind].accumulate(learner, everything).values
        parameters = list(lora_parameters(model).values())
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
        return gradient, values

    whole, values = learn(Processes())
    parts = [learn(Processes(rank, 3)) for rank in range(3)]
    summed = torch.stack([gradient for gradient, _ in parts]).sum(0)
    assert (summed - whole).norm() < 1e-4 * whole.norm()
    assert sum(of_part["loss"] for _, of_part in parts) == pytest.approx(values["loss"], rel=1e-4)
    model.adapter_digest = None


@pytest.mark.parametrize("kind", [*KINDS, "pso"])
def test_a_step_of_it_is_measured_ahead(tiny_lcm, kind):
    """For a memory budget and `rlcm bench`."""
    config = make_config(tiny_lcm, objective={"kind": kind}, sample={"group_size": 2})
    probe = Probe(config, load_policy_model(config), samples=2, batch_size=2, steps=2)
    with probe.undone():
        probe.take_step(4)
        norm, moved = probe.train_once()
    assert norm > 0
    assert moved > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_matching_model_learns_by_it(flow_model, tmp_path, kind):
    """Without any noise while drawing."""
    options = describe_family_run(tmp_path, flow_model, load_tiny(flow_model))
    settings = ["--set=sampler.eta=0", "--set=sample.group_size=2", f"--objective={kind}", f"--run={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--no-cache", "--quiet", *map(str, options), *settings])
    assert not leaving.value.code
    assert (tmp_path / "run" / "checkpoints" / "000001" / "pytorch_lora_weights.safetensors").exists()
