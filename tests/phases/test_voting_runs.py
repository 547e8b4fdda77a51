"""Runs that are trained for people's votes: phases wait for them, learn from them, and do without them elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from phase_runs import finish, make_config, shared_model
from voted_runs import prefer_bright, vote_all, write_grey_evaluation, write_voted

from rlcm_cli.config import override_config
from rlcm_cli.errors import ConfigError, MissingFileError, RewardError
from rlcm_cli.events import Evaluated
from rlcm_cli.phases.evaluate import average_evaluation, evaluate
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.runs.held_out import read_weights
from rlcm_cli.runs.policy import ensure_start
from rlcm_cli.runs.run import check_run, create_run
from rlcm_cli.store.checkpoint import latest_checkpoint
from rlcm_cli.store.evaluations import publish_rescored, read_evaluation
from rlcm_cli.store.metrics import read_iteration_metrics
from rlcm_cli.voting.contests import contests_of_rollout, read_rollout_images
from rlcm_cli.voting.results import count_votes, write_pairs


def vote_on(run, iteration, voter="0123abcd"):
    bright = prefer_bright(read_rollout_images(run.layout, iteration))
    vote_all(run, contests_of_rollout(run.layout, iteration, run.scored_tasks("votes")), bright, voter)
    return count_votes(run, [])


@pytest.fixture
def model(tiny_lcm):
    return shared_model(tiny_lcm)


def test_the_loop_waits_for_votes_and_goes_on_when_they_are_there(tmp_path, tiny_lcm, model):
    config = make_config(tiny_lcm, sample={"group_size": 4}, train={"advantages": "group"})
    config = config.model_copy(update={"rewards": {"votes": 1.0, "compressibility": 0.5}})
    run = create_run(tmp_path / "run", config)
    for iteration in range(2):
        for _ in range(2):  # asked again, it waits again
            with pytest.raises(
                RewardError, match=rf"rollouts/00000{iteration}: .*`rlcm vote .*run`, then run the same"
            ):
                finish(loop(run, model, load_scorers(run)))
            assert latest_checkpoint(run.layout) == iteration
        vote_on(run, iteration)
    events = finish(loop(run, model, load_scorers(run)))
    assert latest_checkpoint(run.layout) == 2
    assert {event.reward_training for event in events if isinstance(event, Evaluated)} == {None}
    metrics = read_iteration_metrics(run.layout, 2)
    assert metrics.rewards["votes"] == pytest.approx(0, abs=1e-6)
    assert metrics.reward_stds["votes"] > 0
    assert "votes" not in metrics.reward_revisions
    assert read_evaluation(run.layout, 0).rewards.keys() == {"compressibility"}


def test_training_without_votes_says_what_is_missing(tmp_path, tiny_lcm, model):
    config = make_config(tiny_lcm, sample={"group_size": 4}).model_copy(update={"rewards": {"votes": 1.0}})
    run = create_run(tmp_path / "run", config)
    ensure_start(run, model)
    finish(sample(run, model))
    with pytest.raises(MissingFileError, match="score the rollout first"):
        finish(train(run, model))


def test_dpo_learns_from_the_table_of_preferred_pairs(tmp_path, tiny_lcm, model):
    pairs = tmp_path / "pairs.csv"
    config = make_config(
        tiny_lcm,
        sample={"group_size": 4},
        objective={"kind": "pso", "pairs": str(pairs)},
        train={"advantages": "group"},
    )
    run = create_run(tmp_path / "run", config.model_copy(update={"rewards": {"votes": 1.0}}))
    ensure_start(run, model)
    finish(sample(run, model))
    counted = vote_on(run, 0)
    write_pairs(pairs, counted.pairs)
    assert len(counted.pairs) > run.config.sample.samples // 4  # more than the best and the worst of each group
    finish(score(run, load_scorers(run)))
    finish(train(run, model))
    assert latest_checkpoint(run.layout) == 1


def test_votes_cannot_be_monitored(tmp_path):
    run = write_voted(tmp_path / "run", rewards=("compressibility",))
    monitored = check_run(run.layout.root, override_config(run.config, flags={"monitor.rewards": ["votes"]}))
    with pytest.raises(ConfigError, match=r"cannot be monitored; leave it out.*`rlcm vote .*run`"):
        load_scorers(monitored)


def test_an_evaluation_counts_the_images_that_were_voted_on(tmp_path):
    run = write_voted(tmp_path / "run")
    write_grey_evaluation(run, 0, [1, 2, 3, 4])
    found = read_evaluation(run.layout, 0)
    event = average_evaluation(found, run.config, read_weights(run.layout, run.config, 0))
    assert (event.reward_training, event.reward_held_out, event.tasks) == (None, None, {})
    publish_rescored(run.layout, found, {"votes": np.array([np.nan, 1, np.nan, 0], np.float32)}, {})
    event = average_evaluation(read_evaluation(run.layout, 0), run.config, read_weights(run.layout, run.config, 0))
    assert (event.reward_training, event.reward_held_out) == (0.5, None)
    assert event.tasks == {"compression": 0.5}


def test_evaluating_again_asks_nobody(tmp_path, tiny_lcm, model):
    config = make_config(tiny_lcm, sample={"group_size": 4}).model_copy(update={"rewards": {"votes": 1.0}})
    run = create_run(tmp_path / "run", config)
    ensure_start(run, model)
    for _ in range(2):
        (*_, event) = finish(evaluate(run, model, load_scorers(run), 0))
        assert (event.reward_training, event.components) == (None, {})
