"""One deadline for a whole exchange."""

import socket
import time

import pytest

from rlcm_cli.rewards.http.deadline import Deadline


@pytest.fixture
def pair():
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(20)
    yield ends
    for end in ends:
        end.close()


def test_a_watched_connection_is_broken_off_when_the_time_is_over(pair):
    started = time.monotonic()
    with Deadline(0.1) as deadline:
        deadline.watch(pair[0])
        assert pair[0].recv(1) == b""
        assert deadline.expired
    assert 0.1 <= time.monotonic() - started < 10


def test_a_connection_that_comes_after_the_time_is_over_is_broken_off_at_once(pair):
    with Deadline(600) as deadline:
        deadline.expire()
        deadline.watch(pair[0])
        assert pair[0].recv(1) == b""


def test_in_time_nothing_happens(pair):
    with Deadline(600) as deadline:
        deadline.watch(pair[0])
        pair[1].sendall(b"x")
        assert pair[0].recv(1) == b"x"
    assert not deadline.expired
    pair[1].sendall(b"y")
    assert pair[0].recv(1) == b"y"
