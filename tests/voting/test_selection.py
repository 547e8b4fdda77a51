"""What is compared: what is asked for, else what the run is about; what cannot be compared is one line."""

from __future__ import annotations

import pytest
from voted_runs import write_grey_evaluation, write_grey_rollout, write_voted

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.voting.selection import list_contenders, select


def write(root, *, rewards=("compressibility",), checkpoints=(0, 2, 4), seed=5, size=2):
    run = write_voted(root, rewards=rewards, greys=[range(size), range(size)], seed=seed)
    for checkpoint in checkpoints:
        write_grey_evaluation(run, checkpoint, [1, 2, 3])
    return run


def test_a_run_is_asked_about_from_its_first_to_its_last_checkpoint(tmp_path):
    found = select({"a": write(tmp_path / "a")})
    assert found.what == "held-out images of checkpoint 0 and checkpoint 4"
    assert [len(own.images) for own in found.contests] == [2, 2, 2]
    assert len(found.gallery) == 2


def test_a_run_that_is_trained_for_votes_is_asked_about_its_newest_rollout(tmp_path):
    run = write(tmp_path / "a", rewards=("votes", "compressibility"))
    write_grey_rollout(run.layout, 1, [(1, 2), (3, 4), (5, 6)])
    found = select({"a": run})
    assert (found.what, len(found.contests)) == ("images of rollout 1", 3)
    assert select({"a": run}, rollouts=[0, 1, 0]).what == "images of rollout 0, 1 and 0"
    assert len(select({"a": run}, rollouts=[0, 1, 0]).contests) == 5
    assert select({"a": run}, checkpoints=[2, 4]).what == "held-out images of checkpoint 2 and checkpoint 4"
    run.layout.shard(1, 0, 1).unlink()  # pruned
    assert select({"a": run}).what == "images of rollout 0"


def test_a_run_with_one_evaluation_is_asked_about_its_rollout(tmp_path):
    assert select({"a": write(tmp_path / "a", checkpoints=[0])}).what == "images of rollout 0"


def test_several_runs_meet_with_their_last_checkpoints_or_those_named(tmp_path):
    runs = {"a": write(tmp_path / "a"), "b": write(tmp_path / "b", checkpoints=[0, 3], seed=6)}
    assert select(runs).what == "held-out images of checkpoint 4 of a and checkpoint 3 of b"
    found = select(runs, checkpoints=[0])
    assert found.what == "held-out images of checkpoint 0 of a and checkpoint 0 of b"
    assert [own.name for own in list_contenders(runs)][:2] == ["checkpoint 0 of a", "checkpoint 2 of a"]


def test_what_cannot_be_compared_is_one_line(tmp_path):
    run = write(tmp_path / "a", checkpoints=[0], size=1)
    other = write(tmp_path / "b", checkpoints=[], seed=6)
    with pytest.raises(ConfigError, match=r"two images to compare.*sample\.group_size"):
        select({"a": run})
    with pytest.raises(MissingFileError, match="no such rollout"):
        select({"a": run}, rollouts=[9])
    with pytest.raises(MissingFileError, match="checkpoint 9 has no held-out images"):
        select({"a": run}, checkpoints=[0, 9])
    with pytest.raises(ConfigError, match="--checkpoint 0: is compared with another"):
        select({"a": run}, checkpoints=[0])
    for number in run.layout.iterations():
        run.layout.shard(number, 0, 2).unlink()  # pruned
    with pytest.raises(ConfigError, match=r"nothing to compare: no stored rollout, and not two evaluations"):
        select({"a": run})
    with pytest.raises(MissingFileError, match="b: has no evaluation; draw one with `rlcm evaluate"):
        select({"a": run, "b": other})
    for arguments in ({"checkpoints": [0]}, {}):
        runs = {"a": run} if arguments else {"a": run, "b": other}
        with pytest.raises(ConfigError, match="--rollout compares images of one run"):
            select(runs, rollouts=[0], **arguments)
