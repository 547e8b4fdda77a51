"""The optimizers, and that their state survives a file."""

import shutil
import sys

import pytest
import torch
from conftest import tiny_values
from phase_runs import fingerprint, finish, make_config
from safetensors.torch import load, save

from rlcm_cli.config import TrainSettings, parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning import optimizer as optimizer_module
from rlcm_cli.learning.optimizer import (
    ADAM_STATE,
    find_optimizer,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.runs.policy import start_run
from rlcm_cli.store.checkpoint import read_optimizer

SIZES = ((100, 100), (70, 70), (5, 5))
EIGHT_BIT = TrainSettings(optimizer="adamw8bit")


class EightBitAdam(torch.optim.Optimizer):
    """A stand-in whose state is laid out as that of bitsandbytes' AdamW8bit; its arithmetic is our own."""

    SHARED = torch.linspace(-1, 1, 256)
    """One table for all parameters, as bitsandbytes has."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.update(parameter, group["lr"], group["betas"][0])

    def update(self, parameter, rate, beta):
        state = self.state[parameter]
        large = parameter.numel() >= 4096
        if not state:
            state["step"] = 0
            state["state1"] = torch.full_like(parameter, 127, dtype=torch.uint8 if large else torch.float32)
            if large:
                state |= {"qmap1": self.SHARED, "absmax1": torch.ones(1)}
        state["step"] += 1
        if not large:
            state["state1"] = beta * state["state1"] + (1 - beta) * parameter.grad
            moment = state["state1"]
        else:
            moment = beta * state["absmax1"] * state["qmap1"][state["state1"].int()] + (1 - beta) * parameter.grad
            state["absmax1"] = moment.abs().max().view(1)
            state["state1"] = ((moment / state["absmax1"] + 1) * 127.5).round().to(torch.uint8)
        parameter -= rate * moment.sign() / state["step"]


def bitsandbytes_adam():
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit


KINDS = {"adamw": lambda: torch.optim.AdamW, "stand-in": lambda: EightBitAdam, "bitsandbytes": bitsandbytes_adam}


@pytest.fixture(params=KINDS)
def make(request, monkeypatch):
    """Give a function that makes the optimizer of some parameters."""
    kind = KINDS[request.param]()
    monkeypatch.setattr(optimizer_module, "find_optimizer", lambda name: kind)
    return lambda parameters: make_optimizer(parameters, EIGHT_BIT, 1e-2)


def fresh():
    generator = torch.Generator().manual_seed(0)
    return {f"{rows}": torch.nn.Parameter(torch.randn(rows, rest, generator=generator)) for rows, rest in SIZES}


def step(parameters, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_an_optimizer_goes_on_from_a_file_as_if_it_had_not_stopped(make):
    parameters, resumed = fresh(), fresh()
    optimizer, resumed_optimizer = make(parameters), make(resumed)
    assert optimizer_tensors(optimizer, parameters) == {}
    for seed in range(3):
        step(parameters, optimizer, seed)
    file = save({name: tensor.contiguous() for name, tensor in optimizer_tensors(optimizer, parameters).items()})
    with torch.no_grad():
        for name, parameter in resumed.items():
            parameter.copy_(parameters[name])
    restore_optimizer(resumed_optimizer, resumed, load(file))
    for name in parameters:
        ours, theirs = optimizer.state[parameters[name]], resumed_optimizer.state[resumed[name]]
        assert {quantity: type(value) for quantity, value in ours.items()} == {
            quantity: type(value) for quantity, value in theirs.items()
        }
    for seed in (3, 4):
        step(parameters, optimizer, seed)
        step(resumed, resumed_optimizer, seed)
        assert all(torch.equal(resumed[name], parameter) for name, parameter in parameters.items())
    restarted = fresh()
    with torch.no_grad():
        for name, parameter in restarted.items():
            parameter.copy_(parameters[name])
    step(restarted, make(restarted), 5)
    step(parameters, optimizer, 5)
    assert not any(torch.equal(restarted[name], parameter) for name, parameter in parameters.items())


def test_the_settings_reach_the_optimizer():
    settings = TrainSettings(adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6, weight_decay=0.1)
    (group,) = make_optimizer(fresh(), settings, 0.5).param_groups
    assert [group[name] for name in ("lr", "betas", "eps", "weight_decay")] == [0.5, (0.8, 0.9), 1e-6, 0.1]


@pytest.mark.parametrize("quantity", sorted(ADAM_STATE))
def test_a_state_that_is_not_whole_is_refused(quantity):
    parameters, again = fresh(), fresh()
    optimizer = torch.optim.AdamW(parameters.values())
    step(parameters, optimizer, 0)
    name = next(iter(parameters))
    tensors = optimizer_tensors(optimizer, parameters)
    del tensors[f"{quantity}/{name}"]
    with pytest.raises(ValueError, match=f"^it lacks {quantity}/{name}$"):
        restore_optimizer(torch.optim.AdamW(again.values()), again, tensors)


def test_without_its_package_the_8_bit_optimizer_is_refused_before_a_run_is_made(tiny_lcm, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = parse_config(tiny_values(tiny_lcm, train={"optimizer": "adamw8bit"}))
    with pytest.raises(
        ConfigError, match=r"adamw8bit needs the package bitsandbytes.*pip install 'rlcm\[8bit\]'"
    ) as e:
        start_run(tmp_path / "run", config)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()
    assert find_optimizer("adamw") is torch.optim.AdamW


def test_a_run_with_8_bit_moments_goes_on_bit_for_bit(tiny_lcm, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer_module, "_adamw8bit", lambda: EightBitAdam)
    config = make_config(
        tiny_lcm,
        train={"optimizer": "adamw8bit", "learning_rate": 1e-4},
        lora={"rank": 256},
        runtime={"iterations": 3},
    )
    run, model = start_run(tmp_path / "run", config)
    finish(loop(run, model, load_scorers(run)))
    assert {name.partition("/")[0] for name in read_optimizer(run.layout, 2)} == {"step", "state1", "qmap1", "absmax1"}
    root = shutil.copytree(run.layout.root, tmp_path / "other")
    shutil.rmtree(root / "checkpoints" / "000003")
    shutil.rmtree(root / "evaluations" / "000003")
    other, model = start_run(root, config)
    finish(loop(other, model, load_scorers(other)))
    assert fingerprint(root) == fingerprint(run.layout.root)
