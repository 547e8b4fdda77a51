"""Votes as files: whole, numbered, bound to their run, and nothing of the voter in them."""

from __future__ import annotations

import getpass
import json
import shutil

import pytest
from store_samples import write_run

from rlcm_cli.errors import CorruptFileError, ForeignFileError, FormatVersionError, MissingFileError
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.verification import verify_run
from rlcm_cli.store.votes import (
    ImageReference,
    list_voters,
    new_voter,
    publish_vote,
    read_votes,
    standing_votes,
    vote_files,
)

ONE, OTHER, THIRD = (ImageReference(record=letter * 64, row=3) for letter in "abc")
VOTER = "0123abcd"


@pytest.fixture
def layout(tmp_path):
    return write_run(tmp_path / "run")


def test_votes_are_read_as_they_were_given(layout):
    given = [
        publish_vote(layout, VOTER, ONE, OTHER, "left"),
        publish_vote(layout, VOTER, OTHER, THIRD, "tie"),
        publish_vote(layout, "ffffffff", ONE, OTHER, "skip"),
    ]
    assert [vote.number for vote in given] == [0, 1, 0]
    assert read_votes(layout) == {VOTER: given[:2], "ffffffff": given[2:]}
    assert verify_run(layout) == []


def test_the_last_vote_of_a_voter_on_two_images_counts_wherever_they_were_shown(layout):
    publish_vote(layout, VOTER, ONE, OTHER, "left")
    publish_vote(layout, VOTER, ONE, THIRD, "right")
    publish_vote(layout, VOTER, OTHER, ONE, "skip")
    publish_vote(layout, "ffffffff", ONE, OTHER, "right")
    standing = standing_votes(read_votes(layout))
    assert [(vote.voter, vote.answer) for vote in standing] == [
        (VOTER, "skip"),
        (VOTER, "right"),
        ("ffffffff", "right"),
    ]


def test_a_vote_at_another_window_takes_the_next_number(layout, monkeypatch):
    publish_vote(layout, VOTER, ONE, OTHER, "left")
    monkeypatch.setattr("rlcm_cli.store.votes.vote_files", lambda *_: [])
    assert publish_vote(layout, VOTER, ONE, OTHER, "right").number == 1


def test_nothing_says_who_or_where_the_voter_is(layout):
    publish_vote(layout, new_voter(), ONE, OTHER, "left")
    (voter,) = list_voters(layout)
    (file,) = vote_files(layout, voter)
    values = json.loads(file.read_bytes())
    assert values.keys() == {"format_version", "run", "voter", "number", "left", "right", "answer"}
    assert "/" not in file.read_text()
    assert getpass.getuser() not in str(file.relative_to(layout.root))
    assert new_voter() != new_voter()


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"answer": "both"}, CorruptFileError),
        ({"voter": "ffffffff"}, ForeignFileError),
        ({"number": 1}, ForeignFileError),
        ({"run": "0" * 64}, ForeignFileError),
        ({"left": {"record": "../../etc/passwd", "row": 0}}, CorruptFileError),
        ({"left": {"record": "a" * 64, "row": -1}}, CorruptFileError),
        ({"format_version": 2}, FormatVersionError),
        ({"name": "ann"}, CorruptFileError),
    ],
)
def test_a_damaged_or_foreign_vote_is_one_line(layout, changes, error):
    publish_vote(layout, VOTER, ONE, OTHER, "left")
    publish_vote(layout, VOTER, ONE, THIRD, "left")
    first, _ = vote_files(layout, VOTER)
    edit(first, **changes)
    with pytest.raises(error, match=r"votes/0123abcd/000000\.json"):
        read_votes(layout)
    assert [str(first) in fault for fault in verify_run(layout)] == [True]


def test_votes_that_were_copied_into_another_run_are_refused(layout, tmp_path):
    publish_vote(layout, VOTER, ONE, OTHER, "left")
    other = RunLayout(tmp_path / "other")
    shutil.copytree(layout.root, other.root)
    record = json.loads(other.config.read_bytes())
    record["config"]["seed"] = 6
    from rlcm_cli.store.identity import identify_run

    other.config.write_text(json.dumps({**record, "run": identify_run(record["config"])}))
    with pytest.raises(ForeignFileError, match="another run"):
        read_votes(other)


def test_a_run_that_was_removed_meanwhile_gets_no_votes(layout):
    shutil.rmtree(layout.root)
    with pytest.raises(MissingFileError, match="moved or removed"):
        publish_vote(layout, VOTER, ONE, OTHER, "left")
    assert not layout.root.exists()
