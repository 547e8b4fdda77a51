"""What each phase fetches of a remote run, and no more; and what a loop publishes and prunes there."""

from __future__ import annotations

import re
import uuid

import pytest
import store_samples
from store_samples import make_manifest, write_checkpoint, write_rollout
from trainable_runs import publish_trainable_run

from rlcm_cli.errors import CorruptFileError
from rlcm_cli.events import Advanced
from rlcm_cli.processes.worker import Worker
from rlcm_cli.runs import staging
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.staging import (
    LoopPublisher,
    follow_published,
    stage_evaluating,
    stage_evaluations,
    stage_inspection,
    stage_loop,
    stage_newest,
    stage_progress,
    stage_report,
    stage_sampling,
    stage_scores,
    stage_scoring,
    stage_start,
    stage_training,
)
from rlcm_cli.store.remote.publishing import Publisher
from rlcm_cli.store.remote.remote_run import open_remote

SHORT = (
    (r"checkpoints/0*(\d+)/.*", r"checkpoint \1"),
    (r"rollouts/0*(\d+)/manifest.json", r"plan \1"),
    (r"rollouts/0*(\d+)/shard-0*(\d+)-of-00002.safetensors", r"shard \1/\2"),
    (r"rollouts/0*(\d+)/rewards/.*/shard-0*(\d+)-of-00002.safetensors", r"rewards \1/\2"),
    (r"rollouts/.*json", "receipts"),
    (r"evaluations/0*(\d+)/.*", r"evaluation \1"),
    (r"metrics/0*(\d+).json", r"metrics \1"),
    (r"config.json|inputs.json", "configuration"),
)
"""Name of a file → what it is of."""


def shorten(name: str) -> str:
    return next((re.sub(pattern, short, name) for pattern, short in SHORT if re.fullmatch(pattern, name)), name)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Give the run as a machine of a name sees it."""
    url = f"memory://{uuid.uuid4().hex}/run"

    def open_on(name: str):
        monkeypatch.setenv("RLCM_STAGE", str(tmp_path / name))
        return open_remote(url)

    return open_on


@pytest.fixture
def publish(machine, monkeypatch):
    """Publish a run of two iterations from the machine `maker`, whose third rollout waits for its training."""

    def make(**sections):
        remote = machine("maker")
        publish_trainable_run(monkeypatch, remote.layout, 2, **sections)
        write_rollout(remote.layout, make_manifest(2))
        Publisher(remote).publish()
        return remote

    return make


@pytest.fixture
def fetched(publish, machine):
    """Fetch with a function on another machine; give what lies in its stage then."""
    publish()

    def fetch(stage, *arguments, **options):
        remote = machine("fetcher")
        fetch.returned = stage(remote, *arguments, **options)
        return {shorten(name) for name in remote.stage.names()}

    return fetch


START = {"configuration", "checkpoint 2"}
ROLLOUT = {"plan 2", "receipts", "shard 2/0", "shard 2/1"}
REWARDS = {"rewards 2/0", "rewards 2/1"}


class TestStages:
    def test_to_start_needs_the_newest_checkpoint(self, fetched):
        assert fetched(stage_start) == START
        assert fetched.returned == 2

    @pytest.mark.parametrize("stage", [stage_start, stage_newest])
    def test_a_run_that_is_not_there_has_none(self, machine, stage):
        remote = machine("one")
        assert stage(remote) is None
        assert remote.stage.names() == []

    def test_where_an_earlier_policy_draws_it_is_fetched_too(self, publish, machine):
        publish(sample={"staleness": 1})
        remote = machine("fetcher")
        assert stage_newest(remote) == 2
        assert {shorten(name) for name in remote.stage.names()} == START | {"checkpoint 1"}

    def test_sampling_needs_to_know_which_shards_are_there(self, fetched):
        assert fetched(stage_sampling) == START | {"plan 2", "receipts"}

    def test_sampling_mends_what_was_cut_on_the_way_up_and_is_whole_here(self, publish, machine):
        remote = publish()
        shard = remote.stage.name(remote.layout.shard(2, 0, 2))
        whole = remote.store.read(shard)
        remote.store.replace(shard, whole[:-1])
        elsewhere = machine("fetcher")
        with pytest.raises(CorruptFileError, match=f"has {len(whole) - 1} of {len(whole)} bytes; move it away"):
            stage_sampling(elsewhere)
        stage_sampling(machine("maker"))
        assert remote.store.read(shard) == whole

    def test_scoring_needs_the_worker_s_shards_of_the_newest_rollout(self, fetched):
        assert fetched(stage_scoring, Worker(1, 2)) == {"configuration", "plan 2", "receipts", "shard 2/1"}

    def test_of_the_rollouts_that_are_asked_for(self, fetched):
        assert fetched(stage_scoring, Worker(), [1]) == {
            "configuration",
            "plan 1",
            "receipts",
            "shard 1/0",
            "shard 1/1",
        }

    def test_or_of_all(self, fetched):
        found = fetched(stage_scoring, Worker(0, 2), everything=True)
        assert {name for name in found if name.startswith(("plan", "shard"))} == {
            *("plan 0", "plan 1", "plan 2"),
            *("shard 0/0", "shard 1/0", "shard 2/0"),
        }

    def test_scoring_needs_nothing_of_a_run_without_checkpoints(self, machine):
        remote = machine("one")
        stage_scoring(remote, Worker())
        assert remote.stage.names() == []

    def test_training_needs_the_rollout_with_its_rewards_and_all_metrics(self, fetched):
        assert fetched(stage_training) == START | ROLLOUT | REWARDS | {"metrics 1", "metrics 2"}

    def test_training_makes_the_table_of_metrics_again(self, fetched, machine):
        table = machine("fetcher").layout.metrics_jsonl
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("of before\n")
        fetched(stage_training)
        assert not table.exists()

    def test_training_fetches_scores_of_later_versions_of_a_reward(self, publish, machine):
        remote = publish()
        own = remote.layout.reward_shard(2, store_samples.REWARD, 0, 2)
        later = own.parent.with_name(f"{store_samples.REWARD}-v1-01234567") / own.name
        other = own.parent.with_name("unknown-0123456789ab") / own.name
        for target in (later, other):
            for suffix in (".safetensors", ".json"):
                content = own.with_suffix(suffix).read_bytes()
                remote.store.create(remote.stage.name(target.with_suffix(suffix)), content)
        elsewhere = machine("fetcher")
        stage_training(elsewhere)
        assert elsewhere.stage.path(remote.stage.name(later)).exists()
        assert not elsewhere.stage.path(remote.stage.name(other)).exists()

    def test_a_loop_needs_the_first_checkpoint_and_evaluations_too(self, fetched):
        assert fetched(stage_loop) == (
            START | ROLLOUT | REWARDS | {"metrics 1", "metrics 2", "checkpoint 0", "evaluation 0"}
        )

    def test_and_the_best_by_what_is_watched(self, fetched, monkeypatch):
        monkeypatch.setattr(staging, "best_checkpoints", lambda *_: {"watched": 1})
        assert "checkpoint 1" in fetched(stage_loop)

    def test_a_loop_begins_where_there_is_no_run(self, machine):
        remote = machine("one")
        stage_loop(remote)
        assert remote.stage.names() == []

    @pytest.mark.parametrize(
        ("checkpoints", "found"), [([], set()), (["0"], {"checkpoint 0", "evaluation 0"}), (["1"], {"checkpoint 1"})]
    )
    def test_an_evaluation_needs_its_checkpoint_and_what_was_evaluated_of_it(self, fetched, checkpoints, found):
        assert fetched(stage_evaluating, checkpoints) == START | found

    def test_a_later_reward_needs_the_images_and_no_checkpoint(self, fetched):
        known = START | {"metrics 1", "metrics 2", "evaluation 0"}
        assert fetched(stage_evaluating, [], later=True) == known
        assert fetched(stage_evaluating, ["1", "last"], later=True) == known | {"checkpoint 1"}

    def test_later_scores_of_an_evaluation_are_fetched_with_it(self, publish, machine):
        remote = publish()
        record = remote.layout.evaluation(0)
        name = remote.stage.name(record.with_name("rescored-000001.safetensors"))
        remote.store.create(name, record.read_bytes())
        remote.store.create(name.replace(".safetensors", ".json"), record.with_suffix(".json").read_bytes())
        elsewhere = machine("fetcher")
        stage_evaluating(elsewhere, ["1"])
        assert not elsewhere.stage.path(name).exists()
        stage_evaluations(elsewhere)
        assert elsewhere.stage.path(name).exists()

    def test_a_report_needs_metrics_and_evaluations(self, fetched):
        assert fetched(stage_report) == START | {"metrics 1", "metrics 2", "evaluation 0"}

    def test_scores_are_the_rewards_without_the_images(self, fetched):
        found = fetched(stage_scores)
        assert {f"rewards {iteration}/{number}" for iteration in range(3) for number in range(2)} <= found
        assert not any(name.startswith("shard") for name in found)

    def test_progress_needs_no_data(self, fetched):
        found = fetched(stage_progress)
        assert {"configuration", "metrics 2", "plan 2", "receipts"} <= found
        assert not any(name.startswith(("shard", "rewards")) for name in found)

    def test_an_inspection_needs_plans_and_receipts(self, fetched):
        plans = {"plan 0", "plan 1", "plan 2", "receipts"}
        assert fetched(stage_inspection) == START | {"metrics 1", "metrics 2", "evaluation 0"} | plans

    def test_or_the_images_of_an_iteration_by_default_the_newest(self, fetched):
        def shards(names):
            return {name for name in names if name.startswith("shard")}

        assert shards(fetched(stage_inspection, images_of=[])) == {"shard 2/0", "shard 2/1"}
        assert shards(fetched(stage_inspection, images_of=[0])) == {"shard 0/0", "shard 0/1", "shard 2/0", "shard 2/1"}

    def test_or_the_whole_run(self, fetched, machine):
        store = machine("maker").store
        whole = {shorten(name) for name in store.sizes()} - {"metrics.jsonl"}
        assert fetched(stage_inspection, whole=True) == whole

    def test_or_one_path(self, fetched):
        assert fetched(stage_inspection, path="checkpoints/000001") == {"checkpoint 1"}


class TestFollowing:
    def test_what_each_event_leaves_is_published_and_the_rest_at_the_end(self):
        done = []
        events = follow_published([Advanced(1), Advanced(2)], lambda: done.append(len(done)))
        assert [event.count for event in events] == [1, 2]
        assert done

    def test_a_phase_without_events_is_published_once(self):
        done = []
        assert list(follow_published([], lambda: done.append(1))) == []
        assert done == [1]

    def test_what_goes_wrong_in_publishing_ends_the_phase(self):
        def fail():
            raise OSError("no network")

        with pytest.raises(OSError, match="no network"):
            list(follow_published([Advanced(1)], fail))


class TestLoopPublisher:
    @pytest.fixture
    def loop(self, machine, monkeypatch):
        def make(**runtime):
            remote = machine("maker")
            config = publish_trainable_run(monkeypatch, remote.layout, 3, runtime=runtime)
            return LoopPublisher(Run(remote.layout, config), Publisher(remote))

        return make

    @staticmethod
    def stored(loop) -> set[str]:
        return {shorten(name) for name in loop.publisher.remote.store.sizes()}

    def test_all_is_kept_unless_the_settings_say_otherwise(self, loop):
        keeping = loop()
        keeping()
        assert {"checkpoint 0", "checkpoint 1", "checkpoint 2", "checkpoint 3"} <= self.stored(keeping)
        assert {f"shard {iteration}/{number}" for iteration in range(3) for number in range(2)} <= self.stored(keeping)

    def test_rollouts_of_before_are_removed_but_for_what_says_that_they_were(self, loop):
        pruning = loop(keep_rollouts=1)
        pruning()
        found = self.stored(pruning)
        assert {name for name in found if name.startswith("shard")} == {"shard 2/0", "shard 2/1"}
        assert {"plan 0", "plan 1", "rewards 0/0", "receipts"} <= found

    def test_checkpoints_are_removed_but_for_the_first_the_newest_and_the_best(self, loop, monkeypatch):
        pruning = loop(keep_checkpoints=1)
        monkeypatch.setattr(staging, "best_checkpoints", lambda *_: {"watched": 1})
        pruning()
        found = self.stored(pruning)
        assert {name for name in found if name.startswith("checkpoint")} == {f"checkpoint {n}" for n in (0, 1, 3)}
        monkeypatch.setattr(staging, "best_checkpoints", lambda *_: {})
        pruning()  # not before there is another checkpoint
        assert "checkpoint 1" in self.stored(pruning)
        write_checkpoint(pruning.run.layout, 4)
        pruning()
        found = self.stored(pruning)
        assert {name for name in found if name.startswith("checkpoint")} == {"checkpoint 0", "checkpoint 4"}
