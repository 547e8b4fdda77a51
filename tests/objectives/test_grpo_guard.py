"""GRPO-Guard's own: its ratio is that of the published code, and calls count alike."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlcm_cli.config import parse_config
from rlcm_cli.core.gaussian import gaussian_kl, gaussian_log_ratio
from rlcm_cli.core.objectives import grpo_guard
from rlcm_cli.core.schedule import transition
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives.grpo_guard import OBJECTIVE, GrpoGuardSettings
from rlcm_cli.samplers.flow import flow_schedule

TABLE = Path(__file__).parent.parent / "data" / "parity" / "trust_regions"


def test_its_ratio_and_its_loss_are_those_of_the_published_code():
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
    gains, std = schedule.output_coef.abs().float()[calls], new.std.flatten()
    advantages = table["advantages"].repeat_interleave(actions)

    changes = (sigmas[:-1] - sigmas[1:]).float()[calls]
    # |b| is dt at σ = 1, and dt times a constant at all other calls: the published loss but for that.
    constant = torch.where(calls > 0, 1 + stated["eta"] ** 2 / 2, 1.0)
    torch.testing.assert_close(gains, constant * changes, rtol=1e-6, atol=0)
    for row, (ratio, loss) in enumerate(
        zip(table["guard_ratio"].flatten(), table["guard_loss"].flatten(), strict=True)
    ):
        one = slice(row, row + 1)
        result = grpo_guard(log_ratios[one], kl[one], std[one], gains[one], advantages[one], stated["clip_range"])
        # Of a difference of float32 log-probabilities, which is off by 2e-7 or so.
        assert abs(result.metrics["guarded_ratio"] - ratio) < 1e-6, row
        assert result.loss * constant[row] == pytest.approx(loss.item(), rel=3e-6), row
    assert 0.2 < (table["guard_ratio"] - 1).abs().gt(stated["clip_range"]).float().mean() < 0.8, "the clip acts"


def test_every_call_pulls_at_the_model_alike():
    """The gradient by the model's output, at the old policy, is as long at each call but for the noise."""
    sigmas = torch.tensor([1.0, 0.9, 0.6, 0.2, 0.0]).double()
    for noise in ("cps", "flow-sde", "dance-sde"):
        schedule = flow_schedule(sigmas, torch.full((4,), 0.6).double(), noise)
        calls = torch.arange(3)
        drawn = torch.randn(1, 5, generator=torch.Generator().manual_seed(1)).double().expand(3, 5)
        outputs = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
        new = transition(schedule, outputs, torch.ones(3, 5).double(), calls)
        old = new.mean.detach()
        log_ratios = gaussian_log_ratio(old + new.std * drawn, new.mean, old, new.std, "mean")
        kl, gains = gaussian_kl(new.mean, old, new.std, "mean"), schedule.output_coef.abs()[calls]
        grpo_guard(log_ratios, kl, new.std.flatten(), gains, torch.ones(3), 0.1).loss.backward()
        torch.testing.assert_close(outputs.grad[1:], outputs.grad[:1].expand(2, 5))


def test_it_compares_within_groups():
    def configure(group_size, **train):
        sections = {"objective": {"kind": "grpo-guard"}, "sample": {"group_size": group_size}, "train": train}
        return parse_config({"task": "mine", "rewards": {"compressibility": 1.0}, **sections})

    assert configure(2).advantage_kind == "group"
    with pytest.raises(ConfigError, match=r"train\.advantages is batch, but objective\.kind grpo-guard takes group"):
        configure(2, advantages="batch")
    with pytest.raises(ConfigError, match=r"set sample\.group_size to 2 or more"):
        configure(1)


def test_its_clip_range_is_that_of_its_own_ratio():
    assert OBJECTIVE.clip_range(GrpoGuardSettings()) is None  # a warning of rounding compares with the plain ratio
    assert GrpoGuardSettings().clip_range == 4e-6
