"""Which images are compared: those of a group, of a prompt, or the same place of several evaluations."""

from __future__ import annotations

import pytest
from voted_runs import write_grey_evaluation, write_grey_rollout, write_voted

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.store.layout import receipt_path
from rlcm_cli.voting.contests import (
    Contender,
    contests_of_evaluations,
    contests_of_rollout,
    read_evaluation_images,
    read_rollout_images,
)


def greys(contests, gallery):
    return [(own.prompt, [int(gallery[image.record][image.row][0, 0, 0]) for image in own.images]) for own in contests]


def test_a_rollout_s_groups_are_compared_over_all_shards(tmp_path):
    run = write_voted(tmp_path / "run", greys=[(1, 2, 3), (4, 5, 6), (7, 8, 9)], shards=2)
    contests = contests_of_rollout(run.layout, 0, ["compression"])
    expected = [("prompt 0", [1, 2, 3]), ("prompt 1", [4, 5, 6]), ("prompt 2", [7, 8, 9])]
    assert greys(contests, read_rollout_images(run.layout, 0)) == expected


def test_without_groups_the_images_of_a_prompt_are_compared(tmp_path, monkeypatch):
    run = write_voted(tmp_path / "run", greys=[(1,), (2,), (3,), (4,)], shards=2)
    monkeypatch.setattr(
        "rlcm_cli.store.manifest.RolloutManifest.prompt_of", lambda self, sample: "odd" if sample % 2 else "even"
    )
    contests = contests_of_rollout(run.layout, 0, ["compression"])
    assert [(own.prompt, len(own.images)) for own in contests] == [("even", 2), ("odd", 2)]


def test_samples_of_other_tasks_are_left_out(tmp_path):
    run = write_voted(tmp_path / "run")
    assert contests_of_rollout(run.layout, 0, []) == []


def test_evaluations_are_compared_place_by_place(tmp_path):
    run = write_voted(tmp_path / "run")
    write_grey_evaluation(run, 0, [1, 2, 3, 4], ["cat", "cat", "dog", "cow"])
    write_grey_evaluation(run, 2, [5, 6, 7], ["dog", "cat", "cat"])
    contenders = [Contender(f"checkpoint {number}", run.layout, number) for number in (0, 2)]
    gallery = read_evaluation_images(contenders[0]) | read_evaluation_images(contenders[1])
    found = greys(contests_of_evaluations(contenders), gallery)
    assert found == [("cat", [1, 6]), ("cat", [2, 7]), ("dog", [3, 5])]


def test_what_cannot_be_compared_is_one_line(tmp_path):
    run = write_voted(tmp_path / "run")
    write_grey_evaluation(run, 0, [1], ["cat"])
    write_grey_evaluation(run, 1, [2], ["dog"])
    first, second, none = (Contender(f"checkpoint {number}", run.layout, number) for number in (0, 1, 7))
    with pytest.raises(ConfigError, match=r"checkpoint 0 and checkpoint 1: .* no prompt in common"):
        contests_of_evaluations([first, second])
    with pytest.raises(MissingFileError, match=r"checkpoint 7 has no held-out images.*rlcm evaluate"):
        contests_of_evaluations([first, none])


def test_a_rollout_in_parts_or_pruned_is_one_line(tmp_path):
    run = write_voted(tmp_path / "run")
    write_grey_rollout(run.layout, 1, [(1, 2)])
    run.layout.shard(1, 0, 1).unlink()
    with pytest.raises(MissingFileError, match=r"pruned"):
        read_rollout_images(run.layout, 1)
    receipt_path(run.layout.shard(0, 1, 2)).unlink()
    with pytest.raises(MissingFileError, match=r"not sampled yet.*rlcm sample"):
        contests_of_rollout(run.layout, 0, ["compression"])
