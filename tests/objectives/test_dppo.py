"""Flow-DPPO's own: its mask is that of the published code."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlcm_cli.core.gaussian import gaussian_kl, gaussian_log_ratio
from rlcm_cli.core.objectives import dppo
from rlcm_cli.core.schedule import transition
from rlcm_cli.objectives import Need
from rlcm_cli.objectives.dppo import OBJECTIVE, DppoSettings
from rlcm_cli.samplers.flow import flow_schedule

TABLE = Path(__file__).parent.parent / "data" / "parity" / "trust_regions"


def test_its_loss_and_its_mask_are_those_of_the_published_code():
    table, stated = load_file(f"{TABLE}.safetensors"), json.loads(TABLE.with_suffix(".json").read_text())
    sigmas = table["sigmas"].double()
    eta = torch.full((len(sigmas) - 1,), stated["eta"], dtype=torch.float64)
    schedule = flow_schedule(sigmas, eta, "flow-sde")
    samples, actions = table["states"].shape[:2]
    calls = torch.arange(actions).repeat(samples)
    states, outputs, old_outputs = (table[name].flatten(0, 1) for name in ("states", "outputs", "old_outputs"))
    new = transition(schedule, outputs, states, calls)
    old = transition(schedule, old_outputs, states, calls)
    log_ratios = gaussian_log_ratio(table["actions"].flatten(0, 1), new.mean, old.mean, new.std, "mean")
    kl = gaussian_kl(new.mean, old.mean, new.std, "mean")
    # The published log-probabilities are float32 numbers of about 1, and their difference is off by 2e-7 or so.
    published = (table["log_probs"] - table["old_log_probs"]).flatten()
    torch.testing.assert_close(log_ratios, published, rtol=0, atol=1e-6)

    advantages = table["advantages"].repeat_interleave(actions)
    losses = table["dppo_loss"].flatten()
    for row in range(len(losses)):
        one = slice(row, row + 1)
        result = dppo(log_ratios[one], kl[one], advantages[one], stated["max_kl"])
        assert (result.metrics["masked_fraction"] == 1) == (losses[row] == 0), row
        assert abs(result.loss - losses[row]) < 3e-6, row
    whole = dppo(log_ratios, kl, advantages, stated["max_kl"]).metrics
    assert whole["masked_fraction"].item() == stated["metrics"]["masked_fraction"]
    assert abs(whole["policy_kl"].item() / stated["metrics"]["kl_new_old_mean"] - 1) < 1e-4


def test_it_compares_with_the_policy_that_drew():
    assert OBJECTIVE.needs == {Need.ACTIONS, Need.OLD_POLICY}
    assert DppoSettings().max_kl == 1e-5
