"""A memory budget picks the settings that fit, changes no result, and refuses in one line what cannot fit."""

import re
from types import SimpleNamespace

import pytest
import torch
from phase_runs import adapter, finish, largest_difference, make_config

from rlcm_cli.errors import ConfigError
from rlcm_cli.measuring import memory
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.measuring.memory import (
    MemoryFit,
    SamplingFit,
    fit_run,
    fit_sampling,
    fit_training,
    measure_peak,
    sampling_peak,
    training_peaks,
)
from rlcm_cli.models.memory import checkpoint_activations, slice_decoding
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.runs.policy import load_policy_model, start_run
from rlcm_cli.runs.run import Run
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics


@pytest.fixture
def config(tiny_lcm):
    return make_config(tiny_lcm)


@pytest.fixture
def model(config):
    return load_policy_model(config)


def megabytes(count):
    return f"{count / 1e6:.6f}MB"


def with_runtime(config, **runtime):
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=runtime)})


def peaks(config, model, *, checkpointing):
    """The function from a micro-batch size to the peak of a step."""
    checkpoint_activations(model, checkpointing)
    probe = Probe(config, model, samples=2, batch_size=1, steps=2)
    with probe.undone():
        found = training_peaks(probe)
    checkpoint_activations(model, False)
    return found


def test_without_a_budget_nothing_is_measured(config, model, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "measure_peak", None)
    run = Run(RunLayout(tmp_path), config)
    assert fit_run(run, model, ("sample", "train")) == (run, MemoryFit())


def test_the_largest_micro_batch_that_fits_is_picked(config, model):
    peak = peaks(config, model, checkpointing=False)
    between = (peak(5) + peak(6)) // 2
    found = fit_training(config, model, between)
    assert (found.micro_batch_size, found.gradient_checkpointing) == (5, False)
    assert found.peak_bytes == peak(5) <= between


def test_the_line_through_two_sizes_tells_the_peak_of_others(config, model):
    predicted = peaks(config, model, checkpointing=False)
    probe = Probe(config, model, samples=2, batch_size=1, steps=2)
    with probe.undone():
        probe.start_optimizer()
        moments = sum(tensor.nbytes for tensor in probe.optimizer_tensors())
        for size in (3, 10, 40):
            measured = moments + measure_peak(model, lambda size=size: probe.take_step(size))
            assert predicted(size) == pytest.approx(measured, rel=0.01)


def test_activations_are_computed_twice_only_where_else_nothing_fits(config, model):
    plain, twice = (peaks(config, model, checkpointing=wanted) for wanted in (False, True))
    assert twice(1) < plain(1)
    assert not fit_training(config, model, plain(1)).gradient_checkpointing
    found = fit_training(config, model, plain(1) - 1)
    assert found.gradient_checkpointing
    assert found.micro_batch_size >= 1
    assert found.peak_bytes < plain(1)
    assert model.denoiser.is_gradient_checkpointing


def test_what_does_not_fit_is_refused_with_what_it_needs(config, model):
    need = peaks(config, model, checkpointing=True)(1)
    with pytest.raises(ConfigError, match="one transition at a time, activations computed twice, takes") as refusal:
        fit_training(config, model, need - 1)
    assert f"takes {need / 1e9:.2f} GB" in str(refusal.value)
    assert fit_training(config, model, need).micro_batch_size == 1


def test_the_probe_leaves_the_policy_as_it_was(config, model):
    before = adapter(model)
    fit_training(config, model, 10**9)
    assert largest_difference(before, adapter(model)) == 0
    assert all(parameter.grad is None for parameter in model.denoiser.parameters())


def test_decoding_one_by_one_is_picked_where_it_is_needed(config, model, monkeypatch):
    """Of an autoencoder that takes more than the U-Net, unlike the tiny one."""

    def peak(config, model, batch):
        return 1000 + batch * (50 if model.pipeline.vae.use_slicing else 100)

    monkeypatch.setattr(memory, "sampling_peak", peak)
    assert fit_sampling(config, model, 1400) == SamplingFit(4, decode_slicing=False, offload=False, peak_bytes=1400)
    assert not model.pipeline.vae.use_slicing
    assert fit_sampling(config, model, 1399) == SamplingFit(4, decode_slicing=True, offload=False, peak_bytes=1200)
    assert model.pipeline.vae.use_slicing
    with pytest.raises(ConfigError, match="drawing 4 images at once does not fit, 3 do"):
        fit_sampling(config, model, 1199)


def test_a_batch_of_sampling_that_is_too_large_is_refused_with_the_one_that_is_not(config, model):
    slice_decoding(model, True)
    two = sampling_peak(config, model, 2)
    with pytest.raises(ConfigError, match=r"drawing 4 images at once does not fit, 2 do; start .*batch_size=2 "):
        fit_sampling(config, model, two)
    with pytest.raises(ConfigError, match=r"drawing one image at a time takes \d+\.\d\d GB; give at least that"):
        fit_sampling(config, model, 1000)


def test_a_refused_budget_leaves_no_run_behind(config, tmp_path):
    tight = with_runtime(config, memory_budget="0.01MB")
    with pytest.raises(ConfigError, match=r"memory_budget 0\.00 GB"):
        start_run(tmp_path / "run", tight, lambda run, model: fit_run(run, model, ("sample", "train"))[0])
    assert not (tmp_path / "run").exists()


def test_a_budget_changes_no_result_and_is_recorded(config, tmp_path):
    """The whole loop with micro-batches of one, activations computed twice, decoding in slices."""
    adapters = {}
    for name in ("plain", "tight"):
        chosen = config
        if name == "tight":
            model = load_policy_model(config)
            slice_decoding(model, True)
            sampling = sampling_peak(config, model, config.sample.batch_size)
            need = max(sampling, peaks(config, model, checkpointing=True)(1))
            assert need < peaks(config, model, checkpointing=False)(config.runtime.micro_batch_size)
            chosen = with_runtime(config, memory_budget=megabytes(need + 1))
        run, model = start_run(tmp_path / name, chosen, lambda run, model: fit_run(run, model, ("sample", "train"))[0])
        finish(loop(run, model, load_scorers(run)))
        adapters[name] = adapter(model)
        recorded = {(row.micro_batch_size, row.gradient_checkpointing) for row in read_metrics(run.layout)}
        runtime = run.config.runtime
        assert recorded == {(runtime.micro_batch_size, runtime.gradient_checkpointing)}
    assert runtime.micro_batch_size < config.runtime.micro_batch_size
    assert largest_difference(adapters["plain"], adapters["tight"]) <= 1e-4


def test_checkpointing_can_be_asked_for_by_itself(config, tiny_lcm):
    assert load_policy_model(with_runtime(config, gradient_checkpointing=True)).denoiser.is_gradient_checkpointing
    assert not load_policy_model(config).denoiser.is_gradient_checkpointing


def test_a_differentiable_reward_is_refused(config, model):
    last = config.last_step.model_copy(update={"mode": "backprop"})
    with pytest.raises(ConfigError, match=r"last_step.mode backprop .* set runtime.micro_batch_size by hand"):
        fit_training(config.model_copy(update={"last_step": last}), model, 10**9)


@pytest.mark.parametrize("objective", ["rebel", "rwr", "grpo"])
def test_every_objective_is_measured(tiny_lcm, objective):
    config = make_config(
        tiny_lcm,
        sample={"samples": 8, "batch_size": 4, "shards": 2, "steps": 4, "guidance_scale": 4.0, "group_size": 2},
        objective={"kind": objective},
    )
    model = load_policy_model(config)
    assert fit_training(config, model, 10**9).micro_batch_size == memory.LARGEST_MICRO_BATCH


# What a GPU does, without one


def test_on_a_gpu_the_end_of_memory_is_an_answer(monkeypatch):
    def run_out(device, work):
        work()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "_cuda_peak", run_out)
    done = []
    assert measure_peak(SimpleNamespace(device=torch.device("cuda")), lambda: done.append(1)) is None
    assert done == [1]


def test_on_a_gpu_sizes_are_tried_under_the_cap(config, model, monkeypatch):
    caps, room = [], {False: 0, True: 11}
    monkeypatch.setattr(memory, "cap_memory", lambda device, budget: caps.append(budget))

    def tried(probe):
        fitting = room[probe.model.denoiser.is_gradient_checkpointing]
        return lambda size: 100 * size if size <= fitting else None

    monkeypatch.setattr(memory, "training_peaks", tried)
    found = fit_training(config, model, 8 * 10**9)
    assert (found.micro_batch_size, found.gradient_checkpointing, found.peak_bytes) == (11, True, 1100)
    room[True] = 0
    with pytest.raises(ConfigError, match="takes more than this device has"):
        fit_training(config, model, 8 * 10**9)
    assert caps == [None, 8 * 10**9]  # lifted to find out what is needed


def test_the_message_of_a_refusal_is_one_line(config, model):
    with pytest.raises(ConfigError) as refusal:
        fit_training(config, model, 1)
    assert re.fullmatch(r"[^\n]+", str(refusal.value))
