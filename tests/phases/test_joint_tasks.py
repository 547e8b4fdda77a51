"""Several tasks in one run: each on its own prompts, for its own rewards, with its own statistics."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import tiny_values
from phase_runs import (
    copy_run,
    did_nothing,
    fingerprint,
    finish,
    make_by_hand,
    make_config,
    make_loop,
    prepare,
    published_shards,
    scorers_of,
    shared_model,
    without_times,
)
from read_plainly import read_plainly

from rlcm_cli.config import parse_config
from rlcm_cli.core.advantages import per_prompt_advantages
from rlcm_cli.core.digests import digest_tensors
from rlcm_cli.errors import ConfigError
from rlcm_cli.events import PhaseStarted, Warned
from rlcm_cli.phases.evaluate import evaluate, plan_evaluation
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.processes.worker import Worker
from rlcm_cli.runs.inputs import read_prompts
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.checkpoint import LORA_FILE, digest_safetensors, read_statistics, read_trainer_state
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import read_iteration_metrics, read_metrics
from rlcm_cli.store.rollouts import read_rewards
from rlcm_cli.store.shards import read_record

CODE = """
def warmth(images, prompts, metadata):
    return images[:, 0].float().mean((1, 2)) - images[:, 2].float().mean((1, 2))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    (folder / "vehicles.txt").write_text("car\nbus\ntram\nvan\nship\nbike\n")
    (folder / "mine.py").write_text(CODE)
    return folder


@pytest.fixture(scope="module")
def warmth(folder):
    return f"{folder}/mine.py:warmth"


def joint_config(model, folder, *, shares=(1.0, 1.0), **sections):
    """Two tasks: animals for two rewards, vehicles for one of them, and the difference is monitored by nobody."""
    warmth = f"{folder}/mine.py:warmth"
    values = tiny_values(model, **sections)
    values["task"] = "animals+vehicles"
    values["rewards"] = {}
    values["tasks"] = {
        "animals": {"rewards": {"compressibility": 1.0, warmth: 0.5}, "share": shares[0]},
        "vehicles": {
            "prompts": {"source": str(folder / "vehicles.txt"), "held_out_fraction": 0.2},
            "rewards": {"compressibility": -1.0},
            "share": shares[1],
        },
    }
    return parse_config(values)


@pytest.fixture(scope="module")
def config(tiny_lcm, folder):
    return joint_config(tiny_lcm, folder, sample={"samples": 12, "group_size": 2, "shards": 3}, shares=(2.0, 1.0))


@pytest.fixture(scope="module")
def root(config, folder):
    """A finished run of two iterations; copy it, do not change it."""
    return make_loop(folder / "run", config).layout.root


def manifests(root):
    layout = open_run(root).layout
    return [read_manifest(layout.manifest(iteration)) for iteration in (0, 1)]


class TestPlan:
    def test_deals_groups_by_shares_and_prompts_by_tasks(self, root, config):
        animals, vehicles = (set(prompts.training) for prompts in open_run(root).prompts.values())
        assert not animals & vehicles
        for manifest in manifests(root):
            assert manifest.tasks == ("animals", "vehicles")
            assert manifest.group_tasks == (0, 0, 0, 0, 1, 1)
            assert set(manifest.prompts[:4]) <= animals
            assert set(manifest.prompts[4:]) <= vehicles

    def test_goes_through_all_prompts_of_a_task_before_one_comes_again(self, tiny_lcm, folder):
        config = joint_config(
            tiny_lcm, folder, sample={"samples": 4, "shards": 1, "steps": 2}, runtime={"iterations": 3}, seed=3
        )
        config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"prompts": 2})})
        run = make_loop(folder / "passes", config)
        drawn = [prompt for n in range(3) for prompt in read_manifest(run.layout.manifest(n)).prompts[2:]]
        training, held_out = run.prompts["vehicles"].training, run.prompts["vehicles"].held_out
        assert len(training) == 5
        assert sorted(drawn[:5]) == sorted(training)
        assert not set(drawn) & set(held_out)

    def test_gives_a_task_with_a_small_share_a_group(self, tiny_lcm, folder, tmp_path):
        run, _ = prepare(tmp_path / "run", joint_config(tiny_lcm, folder, shares=(1000.0, 1.0)), upto="sample")
        assert read_manifest(run.layout.manifest(0)).group_tasks == (0, 0, 0, 0, 0, 0, 0, 1)

    def test_is_read_without_this_toolkit(self, root):
        result = read_plainly(root)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == {"rollout": 6, "rewards": 12, "evaluation": 2}

    def test_and_samples_agree_on_prompts_and_tasks(self, root):
        layout = open_run(root).layout
        for manifest in manifests(root):
            for number in range(3):
                tensors, fields = read_record(layout.shard(manifest.iteration, number, 3), "rollout")
                prompts = [fields["prompts"][index] for index in tensors["prompt_index"].tolist()]
                tasks = [fields["tasks"][index] for index in tensors["task_index"].tolist()]
                samples = tensors["sample_index"].tolist()
                assert prompts == [manifest.prompt_of(sample) for sample in samples]
                assert tasks == ["animals" if sample < 8 else "vehicles" for sample in samples]


class TestRewards:
    def test_are_given_to_the_samples_of_their_tasks_alone(self, config, warmth, tmp_path):
        run, model = prepare(tmp_path / "run", config, upto="sample")
        seen = {}

        def reward_named(name):
            def reward(images, prompts, metadata):
                seen.setdefault(name, []).extend(known["sample"] for known in metadata)
                return images.float().mean((1, 2, 3))

            return reward

        names = ["compressibility", warmth]
        events = finish(score(run, scorers_of(run, {name: reward_named(name) for name in names})))
        assert seen == {"compressibility": list(range(12)), warmth: list(range(8))}
        assert [event.total for event in events if isinstance(event, PhaseStarted)] == [20]
        components = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False).components
        assert components["compressibility"].isfinite().all()
        assert components[warmth].isnan().tolist() == [False] * 8 + [True] * 4
        assert did_nothing(finish(score(run, load_scorers(run))))

    def test_that_nobody_is_trained_for_are_given_to_all(self, config, warmth, tmp_path):
        monitored = config.model_copy(
            update={"monitor": config.monitor.model_copy(update={"rewards": ("sharpness",)})}
        )
        run = create_run(tmp_path / "run", monitored)
        assert run.scored_tasks("sharpness") == ["animals", "vehicles"]
        assert run.scored_tasks(warmth) == ["animals"]
        assert run.scored_tasks("compressibility") == ["animals", "vehicles"]

    def test_of_another_task_are_nan_nowhere_else(self, root):
        layout = open_run(root).layout
        for row in read_metrics(layout):
            numbers = list(_numbers(row.as_row()))
            assert len(numbers) > 20
            assert np.isfinite(numbers).all()
        for number in (0, 1, 2):
            for of_component in read_statistics(layout, number).values():
                assert np.isfinite([value for kept in of_component.values() for value in kept]).all()

    def test_of_a_set_see_the_groups_of_their_task(self, config, warmth, tmp_path):
        run, _ = prepare(tmp_path / "run", config, upto="sample")
        groups = []

        def reward(images, prompt, metadata):
            groups.append((prompt, [known["sample"] for known in metadata]))
            return torch.zeros(len(images))

        finish(score(run, scorers_of(run, {warmth: reward}, set_level=True)))
        prompts = read_manifest(run.layout.manifest(0)).prompts
        assert groups == [(prompts[group], [2 * group, 2 * group + 1]) for group in range(4)]


def _numbers(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


class TestStatistics:
    def test_are_kept_apart_and_are_those_of_each_task_by_itself(self, root, config, warmth):
        layout = open_run(root).layout
        specs = open_run(root).reward_specs()
        expected = {}
        for manifest in manifests(root):
            for task, name in (
                ("animals", "compressibility"),
                ("animals", warmth),
                ("vehicles", "compressibility"),
            ):
                samples = manifest.samples_of([task])
                tasks = ["animals"] if name == warmth else None
                values = read_rewards(layout, manifest, specs[name].directory, tasks)[samples].tolist()
                prompts = [manifest.prompt_of(sample) for sample in samples]
                component = f"{task}/{name}"
                _, expected[component] = per_prompt_advantages(
                    prompts, values, expected.get(component, {}), buffer_size=4, min_count=2
                )
            assert read_statistics(layout, manifest.iteration + 1) == expected


def computed_values(root):
    """Return what a run has computed, by file; its other members say whose they are, or digest those that do."""
    values = {
        str(file.relative_to(root)): digest_tensors(safetensors.torch.load_file(file))
        for file in root.rglob("*.safetensors")
    }
    for number in RunLayout(root).measured():
        values[f"metrics {number}"] = without_times(read_iteration_metrics(RunLayout(root), number).as_row())
    for number in RunLayout(root).checkpoints():
        values[f"statistics {number}"] = read_statistics(RunLayout(root), number)
    assert len(values) > 15
    return values


class TestOneTask:
    def test_trains_the_same_weights_as_a_run_without_the_table(self, tiny_lcm, finished_run, tmp_path):
        values = tiny_values(tiny_lcm)
        values |= {"rewards": {}, "tasks": {"compression": {"rewards": {"compressibility": 1.0}}}}
        run = make_loop(tmp_path / "run", parse_config(values))
        without = finished_run
        assert open_run(without).config != run.config
        assert fingerprint(run.layout.root).keys() == fingerprint(without).keys()
        assert computed_values(run.layout.root) == computed_values(without)

    @pytest.mark.parametrize("weight", [0.1, 30.0])
    def test_with_one_reward_trains_the_same_weights_with_any_weight(self, tiny_lcm, finished_run, tmp_path, weight):
        run = make_loop(tmp_path / "run", make_config(tiny_lcm, rewards={"compressibility": weight}))
        for number in (1, 2):
            digests = [
                digest_safetensors(root / "checkpoints" / f"{number:06d}" / LORA_FILE)
                for root in (run.layout.root, finished_run)
            ]
            assert digests[0] == digests[1]


class TestResume:
    def test_by_hand_and_by_several_workers_gives_the_same_bytes(self, config, root, tmp_path):
        workers = (Worker(1, 2), Worker(0, 2))
        by_hand = make_by_hand(tmp_path / "run", config, workers, fresh=False)
        assert fingerprint(by_hand.layout.root) == fingerprint(root)

    def test_goes_on_from_any_iteration_bit_by_bit(self, config, root, tmp_path):
        shorter = config.model_copy(update={"runtime": config.runtime.model_copy(update={"iterations": 1})})
        run = make_loop(tmp_path / "run", shorter)
        make_loop(tmp_path / "run", config)
        found, expected = fingerprint(run.layout.root), fingerprint(root)
        assert found.pop("config.json") != expected.pop("config.json")
        extra = {name for name in found if name.startswith("evaluations/000001/")}
        assert {name: digest for name, digest in found.items() if name not in extra} == expected

    @pytest.mark.parametrize("lost", ["rollouts/000001/rewards", "checkpoints/000002", "metrics", "rollouts/000001"])
    def test_after_a_loss_makes_what_was_lost(self, config, root, tmp_path, lost):
        run = copy_run(root, tmp_path / "run")
        before = published_shards(run.layout.root)
        shutil.rmtree(run.layout.root / lost)
        if not lost.startswith("checkpoints"):
            shutil.rmtree(run.layout.root / "checkpoints/000002", ignore_errors=True)
        make_loop(tmp_path / "run", config)
        found, expected = fingerprint(run.layout.root), fingerprint(root)
        if lost == "metrics":  # of the first iteration they are gone for good
            found, expected = (
                {name: digest for name, digest in files.items() if not name.startswith("metrics")}
                for files in (found, expected)
            )
        assert found == expected
        after = published_shards(run.layout.root)
        kept = {path: mark for path, mark in before.items() if lost not in str(path)}
        assert {path: after[path] for path in kept} == kept


class TestEvaluation:
    def test_draws_each_task_in_equal_parts(self, config):
        wide = config.model_copy(
            update={"evaluate": config.evaluate.model_copy(update={"prompts": 9, "images_per_prompt": 2})}
        )
        prompts = read_prompts(config)
        plan = plan_evaluation(wide, prompts)
        assert [fixed.task for fixed in plan] == ["animals"] * 8 + ["vehicles"] * 8
        for fixed in plan:
            own = prompts[fixed.task]
            assert fixed.prompt in (own.held_out if fixed.held_out else own.training)
        for task in config.tasks:
            assert any(fixed.held_out for fixed in plan if fixed.task == task)
        assert len({fixed.seed for fixed in plan}) == 16
        assert [fixed.group for fixed in plan] == [number for number in range(8) for _ in range(2)]

    def test_has_the_rewards_of_each_task(self, root, warmth, tiny_lcm):
        run = open_run(root)
        evaluation = read_evaluation(run.layout, 2)
        assert evaluation.tasks == ["animals", "vehicles"]
        assert np.isfinite(evaluation.rewards["compressibility"]).all()
        assert np.isnan(evaluation.rewards[warmth]).tolist() == [False, True]
        (event,) = finish(evaluate(run, shared_model(tiny_lcm), load_scorers(run), 2))
        compressibility, heat = evaluation.rewards["compressibility"], evaluation.rewards[warmth]
        assert event.tasks == {
            "animals": pytest.approx((compressibility[0] + 0.5 * heat[0]).item()),
            "vehicles": pytest.approx(-compressibility[1].item()),
        }
        assert event.components == {
            "compressibility": pytest.approx(compressibility.mean().item()),
            warmth: pytest.approx(heat[0].item()),
        }
        assert np.isfinite([event.reward_training, *event.components.values()]).all()


def test_a_task_whose_prompts_cannot_be_read_leaves_no_directory(tiny_lcm, folder, tmp_path):
    config = joint_config(tiny_lcm, folder)
    vehicles = config.tasks["vehicles"]
    lost = vehicles.model_copy(update={"prompts": vehicles.prompts.model_copy(update={"source": "nowhere.txt"})})
    broken = config.model_copy(update={"tasks": {**config.tasks, "vehicles": lost}})
    with pytest.raises(ConfigError, match=r"nowhere\.txt"):
        create_run(tmp_path / "run", broken)
    assert not (tmp_path / "run").exists()


def test_equal_rewards_within_every_task_teach_nothing(config, tmp_path, warmth):
    run, model = prepare(tmp_path / "run", config, upto="sample")

    def same(images, prompts, metadata):
        return torch.full((len(images),), 2.0)

    finish(score(run, scorers_of(run, {"compressibility": same, warmth: same})))
    events = finish(train(run, model))
    assert any("all rewards are equal" in event.message for event in events if isinstance(event, Warned))
    assert events[-1].metrics.updates == 0
