"""Scoring: any stored rollout, again and again, by anyone, with any reward, and never twice for nothing."""

import shutil

import pytest
import torch
from phase_runs import (
    copy_run,
    did_nothing,
    finish,
    make_config,
    make_loop,
    prepare,
    raw_bytes,
    remove_record,
    scorers_of,
    shared_model,
)

from rlcm_cli.config import override_config
from rlcm_cli.errors import ConfigError, ForeignFileError, MissingFileError, RewardError, RunMismatchError
from rlcm_cli.events import Advanced, PhaseSkipped, PhaseStarted
from rlcm_cli.phases import score as score_module
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.score import Scorer, choose_iterations, load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.processes.worker import Worker
from rlcm_cli.rewards import Reward, RewardSpec
from rlcm_cli.runs.run import Run, check_run, create_run, open_run
from rlcm_cli.store.layout import receipt_path
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import missing_rewards, read_rewards
from rlcm_cli.store.run import prune_rollouts
from rlcm_cli.store.score_cache import ScoreCache, digest_images
from rlcm_cli.store.shards import read_record

CPU = torch.device("cpu")


class Counting:
    """A reward of the images that counts what it is asked."""

    def __init__(self, scale=1.0):
        self.scale, self.batches, self.seen = scale, [], []

    def __call__(self, images, prompts, metadata):
        self.batches.append(len(images))
        self.seen += [(prompt, known["sample"]) for prompt, known in zip(prompts, metadata, strict=True)]
        return self.scale * images.float().mean((1, 2, 3))


def monitoring(run, *names, **flags):
    """Open a run with more rewards than it is trained for, as `rlcm score --reward` does."""
    return check_run(run.layout.root, override_config(run.config, flags={"monitor.rewards": list(names), **flags}))


def sidecars(run, name, iteration=0):
    folder = run.layout.rollout(iteration) / "rewards" / run.reward_specs()[name].directory
    return sorted(file.name for file in folder.glob("*.safetensors"))


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a run whose two iterations are trained."""
    return copy_run(finished_run, tmp_path / "run")


@pytest.fixture
def cache(tmp_path):
    opened = ScoreCache(tmp_path / "cache" / "scores.sqlite3")
    yield opened
    opened.close()


class TestAFinishedRollout:
    def test_is_scored_with_another_reward_beside_its_own(self, run):
        before = raw_bytes(run.layout.root)
        monitored = monitoring(run, "incompressibility")
        finish(score(monitored, load_scorers(monitored, ["incompressibility"]), iterations=[0, 1]))
        after = raw_bytes(run.layout.root)
        assert {name: after[name] for name in before} == before
        assert len(after) == len(before) + 2 * 2 * 2
        for iteration in (0, 1):
            manifest = read_manifest(run.layout.manifest(iteration))
            own, other = (
                read_rewards(run.layout, manifest, monitored.reward_specs()[name].directory)
                for name in ("compressibility", "incompressibility")
            )
            assert (own == -other).all()

    def test_by_default_is_left_alone(self, run):
        monitored = monitoring(run, "incompressibility")
        before = raw_bytes(run.layout.root)
        assert finish(score(monitored, load_scorers(monitored, ["incompressibility"]))) == []
        assert raw_bytes(run.layout.root) == before

    def test_is_scored_again_with_other_settings_of_the_same_reward(self, run):
        for spec in (RewardSpec("recognition"), RewardSpec("recognition", {"floor": -3.5})):
            reward = Reward("recognition", Counting())
            finish(score(run, {"recognition": Scorer(spec, reward, ["compression"])}, iterations=[0]))
        folders = {folder.name for folder in (run.layout.rollout(0) / "rewards").glob("recognition-*")}
        assert len(folders) == 2

    def test_is_scored_from_its_configuration_and_rollouts_alone(self, tiny_lcm, tmp_path):
        (tmp_path / "prompts.txt").write_text("cat\ndog\ncow\nhen\nfox\nowl\n")
        config = make_config(tiny_lcm, prompts={"source": str(tmp_path / "prompts.txt")}, runtime={"iterations": 1})
        made = make_loop(tmp_path / "run", config)
        (tmp_path / "prompts.txt").unlink()  # another machine has no prompts
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(made.layout.root / "rollouts", elsewhere / "rollouts")
        shutil.copy(made.layout.config, elsewhere)
        shutil.rmtree(elsewhere / "rollouts/000000/rewards")

        there = monitoring(open_run(elsewhere), "incompressibility")
        chosen = choose_iterations(there, everything=True)
        finish(score(there, load_scorers(there), iterations=chosen))
        for folder in (made.layout.rollout(0) / "rewards").iterdir():
            for file in folder.iterdir():
                assert (
                    elsewhere / "rollouts/000000/rewards" / folder.name / file.name
                ).read_bytes() == file.read_bytes()
        assert len(sidecars(there, "incompressibility")) == 2


class TestChosenIterations:
    def test_are_those_that_are_not_trained_yet(self, run, tiny_lcm, tmp_path):
        assert choose_iterations(run) == []
        sampled, _ = prepare(tmp_path / "other", make_config(tiny_lcm), upto="sample")
        assert choose_iterations(sampled) == [0]

    def test_are_all_that_are_stored_where_everything_is_wanted(self, run):
        assert choose_iterations(run, everything=True) == [0, 1]
        prune_rollouts(run.layout, 1, 2)
        assert choose_iterations(run, everything=True) == [1]

    def test_are_those_that_are_named(self, run):
        assert choose_iterations(run, [1]) == [1]
        assert choose_iterations(run, [1, 0], everything=True) == [1, 0]
        with pytest.raises(MissingFileError, match=r"rollouts/000007: there is no such rollout; `rlcm inspect"):
            choose_iterations(run, [1, 7])

    def test_leave_pruned_rollouts_in_peace(self, run):
        prune_rollouts(run.layout, 1, 2)
        monitored = monitoring(run, "incompressibility")
        chosen = choose_iterations(monitored, everything=True)
        finish(score(monitored, load_scorers(monitored, ["incompressibility"]), iterations=chosen))
        assert [len(sidecars(monitored, "incompressibility", iteration)) for iteration in (0, 1)] == [0, 2]


class TestWhatIsThere:
    def test_is_not_asked_for_again(self, run):
        reward = Counting()
        scorers = scorers_of(run, {"compressibility": reward})
        assert did_nothing(finish(score(run, scorers, iterations=[0, 1])))
        assert reward.batches == []
        remove_record(run.layout.reward_shard(1, run.reward_specs()["compressibility"].directory, 0, 2))
        events = finish(score(run, scorers, iterations=[0, 1]))
        assert [type(event) for event in events] == [PhaseSkipped, PhaseStarted, Advanced]
        assert [sample for _, sample in reward.seen] == [0, 1, 2, 3]

    def test_of_two_rewards_is_told_apart(self, run):
        one, other = Counting(), Counting()
        monitored = monitoring(run, "incompressibility")
        events = finish(
            score(
                monitored,
                scorers_of(monitored, {"compressibility": one, "incompressibility": other}),
                iterations=[0],
            )
        )
        assert (one.batches, other.batches) == ([], [4, 4])
        assert [event.total for event in events if isinstance(event, PhaseStarted)] == [8]
        assert sum(event.count for event in events if isinstance(event, Advanced)) == 8


def test_several_workers_give_each_shard_to_one(tiny_lcm, tmp_path):
    config = make_config(tiny_lcm, sample={"shards": 4})
    alone, _ = prepare(tmp_path / "alone", config, upto="sample")
    shared = copy_run(alone.layout.root, tmp_path / "shared")
    finish(score(alone, load_scorers(alone)))
    seen = []
    for index in (2, 0, 1):
        reward = Counting()
        finish(score(shared, scorers_of(shared, {"compressibility": reward}), Worker(index, 3)))
        seen.append({sample for _, sample in reward.seen})
    assert seen == [{4, 5}, {0, 1, 6, 7}, {2, 3}]
    for file in alone.layout.rollout(0).glob("rewards/*/*.safetensors"):
        (same,) = shared.layout.rollout(0).glob(f"rewards/*/{file.name}")
        assert read_record(same, "rewards")[0]["sample_index"].equal(read_record(file, "rewards")[0]["sample_index"])


def test_several_workers_write_the_bytes_of_one(tiny_lcm, tmp_path):
    alone, _ = prepare(tmp_path / "alone", make_config(tiny_lcm, sample={"shards": 4}), upto="sample")
    shared = copy_run(alone.layout.root, tmp_path / "shared")
    finish(score(alone, load_scorers(alone)))
    for index in (1, 0):
        finish(score(shared, load_scorers(shared), Worker(index, 2)))
    assert raw_bytes(shared.layout.root) == raw_bytes(alone.layout.root)


class TestSampleOrder:
    def test_each_image_meets_its_prompt_and_metadata(self, run):
        reward = Counting()
        monitored = monitoring(run, "incompressibility")
        finish(score(monitored, scorers_of(monitored, {"incompressibility": reward}), iterations=[1]))
        manifest = read_manifest(run.layout.manifest(1))
        assert reward.seen == [(manifest.prompt_of(sample), sample) for sample in range(8)]
        values = read_rewards(run.layout, manifest, monitored.reward_specs()["incompressibility"].directory)
        images = [read_record(run.layout.shard(1, number, 2), "rollout")[0]["images"] for number in (0, 1)]
        torch.testing.assert_close(torch.from_numpy(values), torch.cat(images).float().mean((1, 2, 3)))

    def test_the_metadata_names_iteration_sample_seed_and_group(self, tiny_lcm, tmp_path):
        run, _ = prepare(tmp_path / "run", make_config(tiny_lcm, sample={"group_size": 2}), upto="sample")
        met = []

        def reward(images, prompts, metadata):
            met.extend(metadata)
            return torch.arange(len(images)).float()

        finish(score(run, scorers_of(run, {"compressibility": reward})))
        seeds = [
            seed
            for number in (0, 1)
            for seed in read_record(run.layout.shard(0, number, 2), "rollout")[0]["seed"].tolist()
        ]
        assert met == [
            {"iteration": 0, "sample": sample, "seed": seeds[sample], "group": sample // 2} for sample in range(8)
        ]


class TestRevisions:
    def give(self, run, revision, worker):
        finish(score(run, scorers_of(run, {"compressibility": Counting()}, revision=revision), worker))

    def test_are_stored_with_the_values(self, tiny_lcm, tmp_path):
        run, _ = prepare(tmp_path / "run", make_config(tiny_lcm), upto="sample")
        self.give(run, "weights 1", Worker())
        spec = run.reward_specs()["compressibility"]
        _, fields = read_record(run.layout.reward_shard(0, spec.directory, 0, 2), "rewards")
        assert fields["reward"] == {
            "name": "compressibility",
            "settings": spec.resolved,
            "digest": spec.digest,
            "revision": "weights 1",
        }

    def test_that_differ_between_workers_are_refused(self, tiny_lcm, tmp_path):
        run, _ = prepare(tmp_path / "run", make_config(tiny_lcm), upto="sample")
        self.give(run, "weights 1", Worker(0, 2))
        with pytest.raises(
            RunMismatchError, match=r"the weights of reward compressibility changed .* --allow-changed"
        ):
            self.give(run, "weights 2", Worker(1, 2))
        spec = run.reward_specs()["compressibility"]
        assert missing_rewards(run.layout, read_manifest(run.layout.manifest(0)), spec.directory) == [1]

    def test_that_differ_between_machines_that_do_not_see_each_other_are_not_trained_on(self, tiny_lcm, tmp_path):
        run, model = prepare(tmp_path / "run", make_config(tiny_lcm), upto="sample")
        self.give(run, "weights 1", Worker(0, 2))
        shutil.rmtree(run.layout.root / "rewards")
        self.give(run, "weights 2", Worker(1, 2))
        with pytest.raises(ForeignFileError, match="were scored by different weights, code or servers"):
            finish(train(run, model))
        assert run.layout.checkpoints() == [0]

    def test_that_are_the_same_are(self, tiny_lcm, tmp_path):
        run, model = prepare(tmp_path / "run", make_config(tiny_lcm), upto="sample")
        for index in (0, 1):
            self.give(run, "weights 1", Worker(index, 2))
        finish(train(run, model))
        assert run.layout.checkpoints() == [0, 1]


class TestCache:
    def rescore(self, run, reward, cache, iterations=(0,), **changes):
        """Score as if the rewards were not there."""
        for iteration in iterations:
            shutil.rmtree(run.layout.rollout(iteration) / "rewards", ignore_errors=True)
        finish(score(run, scorers_of(run, {"compressibility": reward}, cache, **changes), iterations=list(iterations)))
        return [
            torch.from_numpy(read_rewards(run.layout, read_manifest(run.layout.manifest(iteration)), folder))
            for iteration in iterations
            for folder in [run.reward_specs()["compressibility"].directory]
        ]

    def test_answers_for_what_was_scored_before(self, run, cache):
        reward = Counting()
        expected = self.rescore(run, reward, cache, (0, 1))
        assert sum(reward.batches) == 16
        again = Counting()
        found = self.rescore(run, again, cache, (0, 1))
        assert again.batches == []
        assert [values.tolist() for values in found] == [values.tolist() for values in expected]

    def test_is_not_asked_where_there_is_none(self, run):
        for _ in range(2):
            reward = Counting()
            self.rescore(run, reward, None)
            assert sum(reward.batches) == 8

    def test_leaves_the_bytes_as_they_are(self, run, cache):
        self.rescore(run, Counting(), None)
        expected = raw_bytes(run.layout.root)
        for _ in range(2):
            self.rescore(run, Counting(), cache)
            assert raw_bytes(run.layout.root) == expected

    def test_asks_for_the_missing_alone_and_puts_all_in_their_places(self, run, cache):
        images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
        prompts = [f"p{row}" for row in range(6)]
        metadata = [{"sample": row, "group": row} for row in range(6)]
        digests = digest_images(images)
        (scorer,) = scorers_of(run, {"compressibility": Counting()}, cache).values()
        scorer.score(images[[1, 4]], [prompts[1], prompts[4]], [metadata[1], metadata[4]], digests[1::3], CPU)
        reward = Counting()
        (scorer,) = scorers_of(run, {"compressibility": reward}, cache).values()
        values = scorer.score(images, prompts, metadata, digests, CPU)
        assert reward.seen == [(prompts[row], row) for row in (0, 2, 3, 5)]
        torch.testing.assert_close(values, images.float().mean((1, 2, 3)))

    @pytest.mark.parametrize("change", ["prompt", "pixel", "revision", "settings", "reward"])
    def test_asks_again_where_anything_else_is_scored(self, cache, change):
        images, prompts = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["a", "b"]
        metadata = [{"sample": row, "group": row} for row in range(2)]

        def ask(spec, revision):
            reward = Counting()
            scorer = Scorer(spec, Reward(spec.name, reward, revision=revision), ["t"], cache)
            scorer.score(images, prompts, metadata, digest_images(images), CPU)
            return sum(reward.batches)

        spec, revision = RewardSpec("recognition"), "one"
        assert ask(spec, revision) == 2
        assert ask(spec, revision) == 0
        if change == "prompt":
            prompts = ["a", "c"]
        elif change == "pixel":
            images[1, 0, 0, 0] = 1
        elif change == "revision":
            revision = "two"
        elif change == "settings":
            spec = RewardSpec("recognition", {"floor": -9.0})
        else:
            spec = RewardSpec("compressibility")
        assert ask(spec, revision) == (1 if change in ("prompt", "pixel") else 2)

    def test_does_not_remember_what_cannot_be(self, run, cache):
        def broken(images, prompts, metadata):
            return torch.full((len(images),), torch.nan)

        with pytest.raises(RewardError, match="returned nan"):
            self.rescore(run, broken, cache)
        reward = Counting()
        self.rescore(run, reward, cache)
        assert sum(reward.batches) == 8

    def test_serves_an_evaluation_too(self, run, tiny_lcm, cache):
        for number in range(2):
            reward = Counting()
            for file in (run.layout.evaluation(2), receipt_path(run.layout.evaluation(2))):
                file.unlink()
            finish(evaluate(run, shared_model(tiny_lcm), scorers_of(run, {"compressibility": reward}, cache), 2))
            assert sum(reward.batches) == (0 if number else 3)


class TestSetLevelRewards:
    """Rewards of whole groups: the images of one prompt that were drawn together."""

    @pytest.fixture
    def groups(self):
        """Every group that a reward is given: prompt and samples."""
        return []

    @pytest.fixture
    def reward(self, groups):
        def spread(images, prompt, metadata):
            assert isinstance(prompt, str)
            groups.append((prompt, [known["sample"] for known in metadata]))
            return images.float().mean((1, 2, 3))

        return spread

    def test_see_whole_groups_whatever_the_batch(self, tiny_lcm, tmp_path, reward, groups, monkeypatch):
        sizes = {"samples": 18, "group_size": 3, "shards": 2, "batch_size": 4}
        run, _ = prepare(tmp_path / "run", make_config(tiny_lcm, sample=sizes), upto="sample")
        monkeypatch.setattr(score_module, "BATCH", 4)  # rounded up to two groups
        events = finish(score(run, scorers_of(run, {"compressibility": reward}, set_level=True)))
        manifest = read_manifest(run.layout.manifest(0))
        assert groups == [(manifest.prompts[group], [3 * group, 3 * group + 1, 3 * group + 2]) for group in range(6)]
        assert [event.count for event in events if isinstance(event, Advanced)] == [6, 3, 6, 3]

    def test_see_whole_groups_at_the_shipped_batch(self, tiny_lcm, tmp_path, reward, groups):
        sizes = {"samples": 69, "group_size": 3, "shards": 1, "batch_size": 69, "steps": 2}
        assert score_module.BATCH % 3  # else nothing would be cut
        run, _ = prepare(tmp_path / "run", make_config(tiny_lcm, sample=sizes), upto="sample")
        finish(score(run, scorers_of(run, {"compressibility": reward}, set_level=True)))
        assert [samples for _, samples in groups] == [[3 * g, 3 * g + 1, 3 * g + 2] for g in range(23)]

    def test_are_not_cached(self, tiny_lcm, tmp_path, reward, groups, cache):
        run, _ = prepare(tmp_path / "run", make_config(tiny_lcm, sample={"group_size": 4}), upto="sample")
        for _ in range(2):
            shutil.rmtree(run.layout.rollout(0) / "rewards", ignore_errors=True)
            finish(score(run, scorers_of(run, {"compressibility": reward}, cache, set_level=True)))
        assert len(groups) == 4

    def test_see_the_groups_of_an_evaluation(self, tiny_lcm, tmp_path, reward, groups):
        config = make_config(tiny_lcm, sample={"group_size": 2}, evaluate={"images_per_prompt": 2})
        run, model = prepare(tmp_path / "run", config, upto="sample")
        finish(evaluate(run, model, scorers_of(run, {"compressibility": reward}, set_level=True), 0))
        assert [samples for _, samples in groups] == [[0, 1], [2, 3], [4, 5]]

    @pytest.mark.parametrize(
        ("sections", "words"),
        [
            ({"evaluate": {"images_per_prompt": 2}}, ["sample.group_size (now 1)"]),
            ({"sample": {"group_size": 2}}, ["evaluate.images_per_prompt (now 1)"]),
        ],
    )
    def test_of_single_images_are_refused_before_anything_is_written(self, tiny_lcm, tmp_path, sections, words):
        chosen = {"rewards": {"diversity": 1.0}}
        with pytest.raises(ConfigError) as caught:
            create_run(tmp_path / "run", make_config(tiny_lcm, **sections, **chosen))
        for word in ("'diversity' compares the images of a prompt", *words):
            assert word in str(caught.value)
        assert not (tmp_path / "run").exists()

    def test_that_are_only_monitored_need_groups_in_the_rollouts_alone(self, tiny_lcm, tmp_path):
        monitor = {"rewards": ["diversity"]}
        with pytest.raises(ConfigError, match=r"sample\.group_size \(now 1\)"):
            create_run(tmp_path / "run", make_config(tiny_lcm, monitor=monitor, evaluate={"images_per_prompt": 2}))
        create_run(tmp_path / "run", make_config(tiny_lcm, monitor=monitor, sample={"group_size": 2}))

    def test_of_single_images_are_refused_when_they_score_if_not_before(self, tiny_lcm, tmp_path, reward):
        run, _ = prepare(tmp_path / "run", make_config(tiny_lcm), upto="sample")
        with pytest.raises(RewardError, match=r"compares the images of a prompt, .* has one; set sample\.group_size"):
            finish(score(run, scorers_of(run, {"compressibility": reward}, set_level=True)))
        assert not (run.layout.rollout(0) / "rewards").exists()


def test_the_device_is_for_rewards_that_run_a_network(run):
    devices = {}

    def reward_named(name):
        def reward(images, prompts, metadata):
            devices[name] = images.device.type
            return torch.zeros(len(images))

        return reward

    spec, images = RewardSpec("compressibility"), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for name, neural in (("network", True), ("pixels", False)):
        scorer = Scorer(spec, Reward(name, reward_named(name), neural=neural), ["t"])
        scorer.score(images, ["a", "b"], [{}, {}], digest_images(images), torch.device("meta"))
    assert devices == {"network": "meta", "pixels": "cpu"}


def test_a_run_without_rollouts_has_nothing_to_score(tiny_config, tmp_path):
    run: Run = create_run(tmp_path / "run", tiny_config)
    for choice in ({}, {"wanted": [0]}, {"everything": True}):
        with pytest.raises(MissingFileError, match=r"no rollouts to score; draw some with `rlcm sample"):
            choose_iterations(run, **choice)
