"""From rewards to advantages and metrics: several rewards, several tasks, and rewards that only some have."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import tiny_values

from rlcm_cli.config import override_config, parse_config
from rlcm_cli.core.advantages import Deviation, per_prompt_advantages
from rlcm_cli.learning.advantages import compute_advantages, flat_prompts, measure_rewards, sum_rewards

SIZES = {"buffer_size": 8, "min_count": 2}


@dataclass(frozen=True)
class Samples:
    prompts: list
    tasks: list
    components: dict
    rewards: torch.Tensor
    groups: torch.Tensor


def make_config(rewards=None, tasks=None, combine="normalised", monitor=()):
    values = tiny_values("none", train=SIZES, monitor={"rewards": list(monitor)})
    values |= {"rewards": rewards or {}, "tasks": tasks or {}, "combine": combine}
    return parse_config(values)


def make_samples(config, prompts, components, tasks=None):
    tensors = {name: torch.tensor(values) for name, values in components.items()}
    of_samples = tasks or [config.task] * len(prompts)
    rewards = sum_rewards(config, of_samples, tensors)
    return Samples(prompts, of_samples, tensors, rewards, torch.arange(len(prompts)))


def random_samples(config, count=64, scales=(1.0, 1.0)):
    generator = np.random.default_rng(0)
    prompts = [f"prompt {number}" for number in generator.integers(0, 8, count)]
    draws = generator.normal(size=(len(scales), count)).astype(np.float32)
    parts = {name: (scale * row).tolist() for name, scale, row in zip("ab", scales, draws, strict=False)}
    return make_samples(config, prompts, parts)


def reference(prompts, values, statistics=()):
    return per_prompt_advantages(prompts, values, dict(statistics), **SIZES)


@pytest.mark.parametrize(("divisor", "correction"), [(None, None), ("K", 0), ("K-1", 1)])
@pytest.mark.parametrize("of_batch", [False, True])
def test_the_deviation_is_the_one_that_is_set(divisor, correction, of_batch):
    settings = {"deviation": "batch" if of_batch else "own", "deviation_divisor": divisor}
    config = override_config(
        make_config({"a": 1.0}), flags={f"train.{name}": value for name, value in settings.items()}
    )
    samples = random_samples(config)
    found, _ = compute_advantages(samples, config, {})
    values, deviation = samples.components["a"].tolist(), Deviation(of_batch, correction)
    expected, _ = per_prompt_advantages(samples.prompts, values, {}, deviation=deviation, **SIZES)
    assert found.tolist() == expected.tolist()


class TestOneReward:
    @pytest.mark.parametrize("combine", ["normalised", "sum"])
    @pytest.mark.parametrize("weight", [1.0, 2.0])
    def test_is_what_it_was_with_any_power_of_two_as_its_weight(self, combine, weight):
        config = make_config({"a": weight}, combine=combine)
        samples = random_samples(config, scales=(3.0,))
        advantages, statistics = compute_advantages(samples, config, {})
        expected, kept = reference(samples.prompts, samples.components["a"].tolist())
        if weight == 1.0 or combine == "normalised":
            assert advantages.tolist() == expected.tolist()
        else:
            np.testing.assert_allclose(advantages, expected, rtol=1e-5)
        if combine == "normalised":  # of the reward itself: its weight has no part in it
            assert statistics == {f"{config.task}/a": kept}
        else:
            assert list(statistics) == [config.task]

    @pytest.mark.parametrize("weight", [0.1, 3.0, 1e-3, 777.7])
    def test_has_no_use_for_its_weight(self, weight):
        config = make_config({"a": weight})
        samples = random_samples(config, scales=(3.0,))
        expected, _ = reference(samples.prompts, samples.components["a"].tolist())
        assert compute_advantages(samples, config, {})[0].tolist() == expected.tolist()


class TestTwoRewards:
    def test_of_very_different_scale_count_alike_where_none_is_summed(self):
        config = make_config({"a": 1.0, "b": 1.0})
        samples = random_samples(config, 256, scales=(1000.0, 0.001))
        advantages, statistics = compute_advantages(samples, config, {})
        parts = [reference(samples.prompts, samples.components[name].tolist())[0] for name in "ab"]
        np.testing.assert_allclose(advantages, (parts[0] + parts[1]) / np.sqrt(2), rtol=1e-12, atol=1e-14)
        # The smaller one is 0.001 wide beside an epsilon of 1e-6 in the divisor.
        for part in parts:
            assert np.corrcoef(advantages, part)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.06)
        assert set(statistics) == {f"{config.task}/a", f"{config.task}/b"}

    def test_of_very_different_scale_starve_the_smaller_where_they_are_summed(self):
        config = make_config({"a": 1.0, "b": 1.0}, combine="sum")
        samples = random_samples(config, 256, scales=(1000.0, 0.001))
        advantages, _ = compute_advantages(samples, config, {})
        parts = [reference(samples.prompts, samples.components[name].tolist())[0] for name in "ab"]
        assert np.corrcoef(advantages, parts[0])[0, 1] > 0.999
        assert abs(np.corrcoef(advantages, parts[1])[0, 1]) < 0.2

    def test_by_hand(self):
        config = make_config({"a": 3.0, "b": -4.0})
        samples = make_samples(config, ["p"] * 4, {"a": [100.0, 200.0, 100.0, 200.0], "b": [0.0, 0.0, 0.25, 0.25]})
        advantages, _ = compute_advantages(samples, config, {})
        # Each is ±1 after its own normalisation, then 3 and −4 over their norm, 5.
        np.testing.assert_allclose(advantages, [0.2, 1.4, -1.4, -0.2], atol=1e-5)
        assert samples.rewards.tolist() == [300.0, 600.0, 299.0, 599.0]

    def test_summed_are_normalised_as_one_reward_as_before(self):
        config = make_config({"a": 2.0, "b": -0.5}, combine="sum")
        samples = random_samples(config)
        total = (2.0 * samples.components["a"] - 0.5 * samples.components["b"]).tolist()
        advantages, statistics = compute_advantages(samples, config, {})
        expected, kept = reference(samples.prompts, total)
        assert samples.rewards.tolist() == total
        assert advantages.tolist() == expected.tolist()
        assert statistics == {config.task: kept}

    def test_remember_each_for_itself(self):
        config = make_config({"a": 1.0, "b": 1.0})
        samples = random_samples(config)
        _, before = compute_advantages(samples, config, {})
        saved = {component: dict(kept) for component, kept in before.items()}
        advantages, after = compute_advantages(samples, config, before)
        assert before == saved
        parts = []
        for name in "ab":
            part, kept = reference(samples.prompts, samples.components[name].tolist(), before[f"{config.task}/{name}"])
            assert after[f"{config.task}/{name}"] == kept
            parts.append(part)
        np.testing.assert_allclose(advantages, (parts[0] + parts[1]) / np.sqrt(2), rtol=1e-12, atol=1e-14)


class TestMonitoredRewards:
    def test_enter_neither_advantages_nor_statistics(self):
        alone, monitoring = make_config({"a": 1.0}), make_config({"a": 1.0}, monitor=["b"])
        bare, seen = random_samples(alone, scales=(1.0,)), random_samples(monitoring)
        assert torch.equal(bare.rewards, seen.rewards)
        expected, found = compute_advantages(bare, alone, {}), compute_advantages(seen, monitoring, {})
        assert found[0].tolist() == expected[0].tolist()
        assert found[1] == expected[1]

    def test_are_told_apart_in_the_metrics(self):
        config = make_config({"a": 2.0}, monitor=["b"])
        metrics = measure_rewards(make_samples(config, ["p", "q"], {"a": [1.0, 2.0], "b": [10.0, 30.0]}), config)
        assert dataclasses.asdict(metrics) == {
            "reward_mean": 3.0,
            "reward_std": 1.0,
            "reward_best": 4.0,
            "rewards": {"a": 1.5},
            "reward_stds": {"a": 0.5, "b": 10.0},
            "monitored": {"b": 20.0},
            "tasks": {config.task: 3.0},
        }


NAN = float("nan")
JOINT = {
    "one": {"rewards": {"a": 1.0}},
    "two": {"rewards": {"a": 0.5, "b": 2.0}, "combine": "sum"},
    "three": {"rewards": {"b": 3.0, "c": 4.0}},
}


class TestJointTasks:
    @pytest.fixture
    def config(self):
        return make_config(tasks=JOINT, monitor=["d"])

    @pytest.fixture
    def samples(self, config):
        return make_samples(
            config,
            ["p", "p", "p", "q", "p", "p"],
            {
                "a": [1.0, 3.0, 4.0, 8.0, NAN, NAN],
                "b": [NAN, NAN, 1.0, 5.0, 7.0, 9.0],
                "c": [NAN, NAN, NAN, NAN, 30.0, 10.0],
                "d": [0.0, 0.0, 0.0, 6.0, 0.0, 6.0],
            },
            ["one", "one", "two", "two", "three", "three"],
        )

    def test_have_a_reward_each_that_no_others_nan_enters(self, samples):
        assert samples.rewards.tolist() == [1.0, 3.0, 4.0, 14.0, 141.0, 67.0]

    def test_are_normalised_apart_even_on_the_same_prompt(self, config, samples):
        advantages, statistics = compute_advantages(samples, config, {})
        # One: ±1. Two: 4 and 14, a prompt each, so the statistics of the task's batch. Three: (∓3 ± 4) / 5.
        np.testing.assert_allclose(advantages, [-1, 1, -1, 1, 0.2, -0.2], rtol=1e-5)
        assert statistics == {
            "one/a": {"p": (1.0, 3.0)},
            "two": {"p": (4.0,), "q": (14.0,)},
            "three/b": {"p": (7.0, 9.0)},
            "three/c": {"p": (30.0, 10.0)},
        }

    def test_keep_their_statistics_over_iterations(self, config, samples):
        _, once = compute_advantages(samples, config, {})
        _, twice = compute_advantages(samples, config, once)
        assert twice["one/a"] == {"p": (1.0, 3.0, 1.0, 3.0)}
        assert twice["three/c"] == {"p": (30.0, 10.0, 30.0, 10.0)}

    def test_of_which_one_is_alone_have_the_advantages_of_a_run_of_that_task(self):
        joint, alone = make_config(tasks={"compression": {"rewards": {"a": 0.3}}}), make_config({"a": 0.3})
        samples = random_samples(alone, scales=(1.0,))
        expected, found = compute_advantages(samples, alone, {}), compute_advantages(samples, joint, {})
        assert found[0].tolist() == expected[0].tolist()
        assert found[1] == expected[1]

    def test_have_metrics_without_nan(self, config, samples):
        metrics = measure_rewards(samples, config)
        assert metrics.rewards == {"a": 4.0, "b": 5.5, "c": 20.0}
        assert metrics.monitored == {"d": 2.0}
        assert metrics.tasks == {"one": 2.0, "two": 9.0, "three": 104.0}
        assert metrics.reward_stds["c"] == 10.0
        assert metrics.reward_stds["a"] == pytest.approx(np.std([1, 3, 4, 8]))
        assert metrics.reward_mean == pytest.approx(230 / 6)
        assert metrics.reward_best == 141.0
        flat = [*metrics.rewards.values(), *metrics.reward_stds.values(), *metrics.tasks.values()]
        assert np.isfinite(flat).all()


class TestFlatPrompts:
    def flat(self, prompts, rewards, tasks=None):
        config = make_config(tasks={name: {"rewards": {"a": 1.0}} for name in dict.fromkeys(tasks or ["one"])})
        return flat_prompts(make_samples(config, prompts, {"a": rewards}, tasks or ["one"] * len(prompts)), config)

    def test_have_several_images_whose_rewards_do_not_differ(self):
        assert self.flat(["a", "b", "b", "c", "c"], [1.0, 2.0, 2.0, 3.0, 4.0]) == ["b"]

    def test_differ_in_a_reward_even_if_the_sum_is_the_same(self):
        config = make_config({"a": 1.0, "b": 1.0})
        components = {"a": [1.0, 2.0], "b": [2.0, 1.0]}
        assert flat_prompts(make_samples(config, ["p", "p"], components), config) == []

    def test_are_looked_for_in_each_task_by_itself(self):
        assert self.flat(["p", "p", "p"], [1.0, 1.0, 2.0], ["one", "two", "two"]) == []
        assert self.flat(["p", "p", "p", "p"], [1.0, 1.0, 2.0, 2.0], ["one", "one", "two", "two"]) == ["p", "p"]
