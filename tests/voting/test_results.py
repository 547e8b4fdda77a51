"""Votes become scores next to the images, pairs for DPO, and an answer to which checkpoint is better."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from voted_runs import prefer_bright, vote_all, write_grey_evaluation, write_voted

from rlcm_cli.errors import ConfigError
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.run.data import read_run
from rlcm_cli.report.run.summary import find_changes
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.reward_versions import newest_scores
from rlcm_cli.store.rollouts import read_scores
from rlcm_cli.store.verification import verify_run
from rlcm_cli.store.votes import publish_vote
from rlcm_cli.voting.contests import (
    Contender,
    contests_of_evaluations,
    contests_of_rollout,
    read_evaluation_images,
    read_rollout_images,
)
from rlcm_cli.voting.results import check_pairs_file, count_votes, write_pairs
from rlcm_cli.voting.selection import list_contenders

GREYS = [(10, 200, 90), (250, 30, 120), (5, 5, 9)]
DIRECTORY = RewardSpec("votes").directory


def scores_of(run):
    manifest = read_manifest(run.layout.manifest(0))
    return read_scores(run.layout, manifest, DIRECTORY, run.scored_tasks("votes"))


@pytest.fixture
def run(tmp_path):
    return write_voted(tmp_path / "run", greys=GREYS)


@pytest.fixture
def contests(run):
    return contests_of_rollout(run.layout, 0, ["compression"])


def test_scores_rank_the_images_as_the_votes_do_and_the_table_has_the_pairs(run, contests, tmp_path):
    vote_all(run, contests, prefer_bright(read_rollout_images(run.layout, 0)))
    counted = count_votes(run, [])
    scores = scores_of(run)
    ranks = scores.values.reshape(3, 3).argsort(1).argsort(1)
    assert ranks[:2].tolist() == [[0, 2, 1], [2, 0, 1]]
    assert scores.values[6] == pytest.approx(scores.values[7], abs=1e-6)  # a tie
    assert scores.values[8] > scores.values[7]
    np.testing.assert_allclose(scores.values.reshape(3, 3).sum(1), 0, atol=1e-6)
    assert scores.revision == ""
    assert (counted.votes, counted.ties, counted.skipped, counted.voters) == (9, 1, 0, 1)
    assert [(own.iteration, own.images, own.scored) for own in counted.rollouts] == [(0, 9, 9)]
    assert verify_run(run.layout) == []
    assert sorted(counted.pairs) == [
        *[(0, 1, 0), (0, 1, 2), (0, 2, 0), (0, 3, 4), (0, 3, 5), (0, 5, 4), (0, 8, 6), (0, 8, 7)]
    ]
    write_pairs(tmp_path / "pairs.csv", counted.pairs)
    with (tmp_path / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [tuple(map(int, row.values())) for row in rows] == list(counted.pairs)


def test_a_count_that_changes_nothing_stores_nothing_and_more_votes_are_a_later_version(run, contests):
    bright = prefer_bright(read_rollout_images(run.layout, 0))
    vote_all(run, contests[:1], bright)
    count_votes(run, [])
    first = scores_of(run).values
    assert first[3:].tolist() == [0] * 6  # nobody voted on them
    folder = run.layout.rollout(0) / "rewards"
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    count_votes(run, [])
    assert files == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    vote_all(run, contests, bright, voter="ffffffff")
    count_votes(run, [])
    assert newest_scores(run.layout, 0, DIRECTORY).startswith(f"{DIRECTORY}-v1-")
    later = scores_of(run).values
    assert (np.abs(later[3:6]) > 0).all()
    assert later[1] > first[1]
    assert all(file.exists() for file in files)
    assert verify_run(run.layout) == []


def test_a_count_that_was_killed_half_way_is_finished_by_the_next(run, contests, monkeypatch):
    vote_all(run, contests, prefer_bright(read_rollout_images(run.layout, 0)))
    published = []

    def publish_one(*arguments):
        if published:
            raise KeyboardInterrupt
        published.append(1)
        return publish(*arguments)

    from rlcm_cli.voting import results

    publish = results.publish_rewards
    for _ in range(2):  # the first version, then the one that is made in its stead
        published.clear()
        monkeypatch.setattr(results, "publish_rewards", publish_one)
        with pytest.raises(KeyboardInterrupt):
            count_votes(run, [])
    monkeypatch.setattr(results, "publish_rewards", publish)
    count_votes(run, [])
    assert scores_of(run).values.reshape(3, 3)[0].argsort().tolist() == [0, 2, 1]
    assert len(list((run.layout.rollout(0) / "rewards").iterdir())) == 2


def test_checkpoints_are_compared_and_the_report_shows_the_scores(run):
    write_grey_evaluation(run, 0, [10, 20, 30, 40, 90])
    write_grey_evaluation(run, 4, [50, 60, 70, 80, 90])
    contenders = list_contenders({"run": run})
    gallery = {**read_evaluation_images(contenders[0]), **read_evaluation_images(contenders[1])}
    vote_all(run, contests_of_evaluations(contenders)[:4], prefer_bright(gallery))
    counted = count_votes(run, contenders)
    (found,) = counted.comparisons
    assert (found.contender.name, found.against.name) == ("checkpoint 4", "checkpoint 0")
    assert (found.rate.share, found.rate.prompts, found.rate.verdict()) == (1.0, 4, "preferred")
    before, after = (read_evaluation(run.layout, number).rewards["votes"] for number in (0, 4))
    assert np.isnan(before).tolist() == np.isnan(after).tolist() == [False] * 4 + [True]
    assert (after[:4] > 0).all()
    np.testing.assert_allclose(before[:4], -after[:4], rtol=1e-6)
    changes = find_changes(read_run(open_compared(run.layout.root), "run"))
    assert {change.reward for change in changes} == {"votes"}
    assert all(change.difference.mean > 0 for change in changes)
    rescored = len(list(run.layout.evaluation(4).parent.glob("rescored-*.json")))
    count_votes(run, contenders)
    assert len(list(run.layout.evaluation(4).parent.glob("rescored-*.json"))) == rescored == 1
    assert verify_run(run.layout) == []


def test_of_several_runs_the_first_keeps_votes_and_scores(run, tmp_path):
    other = write_voted(tmp_path / "other", seed=6)
    write_grey_evaluation(run, 3, [10, 20, 30])
    write_grey_evaluation(other, 3, [50, 60, 10])
    contenders = list_contenders({"run": run, "other": other})
    gallery = {**read_evaluation_images(contenders[0]), **read_evaluation_images(contenders[1])}
    vote_all(run, contests_of_evaluations(contenders), prefer_bright(gallery))
    (found,) = count_votes(run, contenders).comparisons
    assert (found.contender.name, found.against.name) == ("checkpoint 3 of other", "checkpoint 3 of run")
    assert found.rate.share == pytest.approx(2 / 3)
    assert "votes" in read_evaluation(run.layout, 3).rewards
    assert "votes" not in read_evaluation(other.layout, 3).rewards
    assert not other.layout.votes.exists()


def test_votes_on_images_that_are_gone_are_kept_and_count_nothing(run, contests):
    image = contests[0].images[0]
    elsewhere = image.model_copy(update={"record": "f" * 64})
    publish_vote(run.layout, "0123abcd", elsewhere, elsewhere.model_copy(update={"row": 7}), "left")
    counted = count_votes(run, list_contenders({"run": run}))
    assert (counted.votes, counted.rollouts, counted.comparisons) == (1, [], [])


def test_an_evaluation_with_no_opponent_is_not_compared(run):
    write_grey_evaluation(run, 0, [1, 2])
    contender = Contender("checkpoint 0", run.layout, 0)
    one, two = (contests_image(contender, row) for row in range(2))
    publish_vote(run.layout, "0123abcd", one, two, "left")
    assert count_votes(run, [contender]).comparisons == []


def contests_image(contender, row):
    from rlcm_cli.store.votes import ImageReference

    return ImageReference(record=contender.record, row=row)


@pytest.mark.parametrize(("name", "content"), [("pairs.txt", None), ("mine.csv", "prompt,seed\n"), ("dir.csv", "")])
def test_a_file_that_is_no_table_of_pairs_is_not_replaced(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="--pairs"):
        check_pairs_file(path)


def test_an_earlier_table_of_pairs_is_replaced(tmp_path):
    path = tmp_path / "pairs.csv"
    write_pairs(path, [(0, 1, 2)])
    check_pairs_file(path)
    write_pairs(path, [(0, 2, 1)])
    assert path.read_text() == "iteration,chosen,rejected\n0,2,1\n"
