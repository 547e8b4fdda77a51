"""A session: each voter resumes, answers can be changed, and names of images tell nothing."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from voted_runs import write_voted

from rlcm_cli.store.votes import read_votes, standing_votes
from rlcm_cli.voting.contests import contests_of_rollout, read_rollout_images
from rlcm_cli.voting.session import Session

GREYS = [(10, 200, 90), (250, 30, 120)]


@pytest.fixture
def run(tmp_path):
    return write_voted(tmp_path / "run", greys=GREYS)


def open_session(run, most=None):
    contests = contests_of_rollout(run.layout, 0, ["compression"])
    return Session(run.layout, contests, read_rollout_images(run.layout, 0), most)


def test_a_vote_is_in_the_run_as_soon_as_it_is_given(run):
    session = open_session(run)
    voter = session.join()
    pair = session.voters[voter].pairs[0]
    session.answer(voter, 0, "right")
    (vote,) = read_votes(run.layout)[voter]
    assert (vote.left, vote.right, vote.answer) == (pair.left, pair.right, "right")


def test_every_voter_resumes_and_goes_an_own_way(run):
    session = open_session(run)
    first, second = session.join(), session.join()
    for number in (0, 1, 2):
        session.answer(first, number, "skip" if number == 1 else "left")
    session.answer(second, 0, "tie")
    again = open_session(run)
    assert again.voters[first].pairs == session.voters[first].pairs
    assert again.voters[first].coming() == [3, 4, 5]
    assert again.voters[second].coming() == [1, 2, 3]
    assert session.voters[first].pairs != session.voters[second].pairs


def test_an_answer_can_be_changed(run):
    session = open_session(run)
    voter = session.join()
    session.answer(voter, 0, "left")
    session.answer(voter, 0, "tie")
    assert [vote.answer for vote in standing_votes(read_votes(run.layout))] == ["tie"]
    assert session.voters[voter].coming() == [1, 2, 3]


def test_a_voter_sees_no_more_pairs_than_asked_for(run):
    session = open_session(run, most=2)
    voter = session.join()
    assert session.planned == len(session.voters[voter].pairs) == 2
    with pytest.raises(IndexError):
        session.answer(voter, 2, "left")


def test_names_of_images_are_new_in_each_session_and_images_say_nothing_of_their_origin(run):
    session, other = open_session(run), open_session(run)
    images = [image for own in contests_of_rollout(run.layout, 0, ["compression"]) for image in own.images]
    names = [session.name(image) for image in images]
    assert len({*names, *(other.name(image) for image in images)}) == 12
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names)
    for name, grey in zip(names, [grey for row in GREYS for grey in row], strict=True):
        picture = Image.open(io.BytesIO(session.encode(name)))
        assert (picture.format, picture.info) == ("PNG", {})
        assert (np.asarray(picture) == grey).all()
    with pytest.raises(KeyError):
        session.encode(other.name(images[0]))


def test_an_unknown_voter_has_no_vote(run):
    with pytest.raises(KeyError):
        open_session(run).answer("0123abcd", 0, "left")
    assert not run.layout.votes.exists()
