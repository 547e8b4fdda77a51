"""The bench measures the phases' own work: counts, shares and projections that can be computed by hand."""

import itertools

import pytest
import torch
from phase_runs import make_config

from rlcm_cli.core.throughput import Work, choose_batch
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning.log_probs import RATIO_TOLERANCE
from rlcm_cli.measuring import bench as bench_module
from rlcm_cli.measuring.bench import bench, time_work
from rlcm_cli.measuring.flops import count_flops
from rlcm_cli.rewards import RewardSpec, load_reward
from rlcm_cli.runs.policy import load_configured_model

CPU = torch.device("cpu")


def measure(config, *, batches=(1, 2), budget=None, tasks=None):
    model = load_configured_model(config.model, config.sampler.kind, "cpu")
    told = []
    found = bench(
        config,
        model,
        load_reward(RewardSpec("compressibility")),
        batches=batches,
        tasks=tasks or {"compression": config},
        budget=budget,
        seconds=0,
        tell=told.append,
    )
    return found, told


@pytest.fixture(scope="module")
def found(tiny_lcm):
    return measure(make_config(tiny_lcm))[0]


def test_each_kind_of_work_has_a_row_a_batch(found):
    for rows in (found.sampling, found.decoding, found.training):
        assert [row.batch for row in rows] == [1, 2]
        for row in rows:
            assert row.timing.repeats >= 3
            assert row.timing.fastest <= row.timing.median <= row.timing.slowest
            assert row.peak_bytes > 10_000_000
    for row in (*found.decoding, *found.training):
        assert row.rate == pytest.approx(row.batch / row.timing.median)


def test_the_share_of_the_peak_is_flops_over_time(found):
    for row in found.training:
        flops = row.batch * found.flops.transition
        assert row.peak_share == pytest.approx(flops / row.timing.median / found.matrix_peak)
    assert found.sampling[0].peak_share == pytest.approx(
        found.sampling[0].rate * found.steps * found.flops.call / found.matrix_peak
    )


def test_flops_are_those_of_the_model(found, tiny_lcm):
    """Counted from outside: a forward of the U-Net; training is less than three, frozen weights having no gradient."""
    model = load_configured_model(make_config(tiny_lcm).model, "lcm", "cpu")
    conditioning = model.encode_prompts(["a cat"])
    latents = torch.zeros(1, *model.latent_shape)
    with torch.no_grad():
        call = count_flops(lambda: model.predict(latents, torch.tensor([999]), conditioning, 4.0))
    assert call <= found.flops.call <= 1.005 * call  # the adapter is folded into the weights once an image
    assert 1.5 * call < found.flops.transition < 3 * call


def test_flops_of_attention_are_counted_on_a_cpu():
    query, key = torch.zeros(2, 4, 8, 16, requires_grad=True), torch.zeros(2, 4, 6, 16, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    forward = 2 * (2 * 2 * 4 * 8 * 6 * 16)  # two products of 2 × 4 matrices, two operations each
    assert count_flops(lambda: attend(query, key, key)) == forward
    both = count_flops(lambda: attend(query, key, key).sum().backward())
    assert both == pytest.approx(3.5 * forward)  # five products backward, as the scores are computed again


def test_the_drift_is_that_of_rounding(found):
    assert 0 <= found.ratio_drift <= RATIO_TOLERANCE["float32"]


def in_bfloat16(config):
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})


def test_half_precision_drifts(tiny_lcm):
    found, _ = measure(in_bfloat16(make_config(tiny_lcm)), batches=(1,))
    assert found.dtype == "bfloat16"
    assert 0 <= found.ratio_drift <= RATIO_TOLERANCE["bfloat16"]


def test_the_projection_is_the_rates_times_the_task_s_work(found):
    (projection,) = found.projections
    chosen = found.suggestions
    sampled = {row.batch: row.rate for row in found.sampling}
    trained = {row.batch: row.rate for row in found.training}
    assert chosen == {
        "sample.batch_size": choose_batch(sampled),
        "runtime.micro_batch_size": choose_batch(trained),
    }
    decoded = {row.batch: row.rate for row in found.decoding}[chosen["sample.batch_size"]]
    assert projection.work == Work(images=16, calls=4, transitions=48)
    assert projection.seconds == pytest.approx(
        16 / sampled[chosen["sample.batch_size"]]
        + 16 / decoded
        + 16 / found.reward.rate
        + 48 / trained[chosen["runtime.micro_batch_size"]]
    )


def test_a_budget_bounds_the_suggestion(tiny_lcm):
    config = make_config(tiny_lcm)
    roomy, _ = measure(config, batches=(4,), budget=10**9)
    assert roomy.fit.micro_batch_size == roomy.largest_micro_batch == 64
    assert not roomy.fit.measured
    tight, told = measure(config, batches=(4,), budget=int(roomy.fit.peak_bytes * 0.3))
    assert tight.fit.micro_batch_size < 64
    assert tight.suggestions["runtime.micro_batch_size"] == min(4, tight.fit.micro_batch_size)
    assert "the memory of training" in told


def test_memory_that_ends_at_once_is_refused(tiny_lcm, monkeypatch):
    def run_out(device, work, seconds):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench_module, "measure_matrix_peak", lambda device, dtype: 1e9)
    monkeypatch.setattr(bench_module, "time_work", run_out)
    with pytest.raises(ConfigError, match="drawing one image needs more memory than there is on cpu"):
        measure(make_config(tiny_lcm))


def test_work_is_timed_after_a_warm_up_and_long_enough(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(bench_module.time, "perf_counter", lambda: float(next(clock)))
    done = []
    timing = time_work(CPU, lambda: done.append(1), 7.5)
    assert len(done) == 1 + 8
    assert timing == bench_module.RepeatedTiming(1.0, 1.0, 1.0, 8)
    assert time_work(CPU, lambda: None, 0).repeats == 3
