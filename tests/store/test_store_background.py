"""Publication in a thread of its own: in order, one at a time, and no error lost."""

import threading
import time

import pytest

from rlcm_cli.errors import StorageFullError
from rlcm_cli.store.background import writing_behind


def test_all_is_published_in_order_and_apart_from_the_caller():
    published, threads = [], set()

    def publish(number):
        time.sleep(0.01 * (3 - number))
        published.append(number)
        threads.add(threading.current_thread())

    with writing_behind() as writer:
        for number in range(4):
            writer.submit(lambda number=number: publish(number))
            assert len(published) >= number  # all but the newest
    assert published == [0, 1, 2, 3]
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_the_caller_goes_on_while_one_is_written():
    entered, release = threading.Event(), threading.Event()

    def publish():
        entered.set()
        assert release.wait(10)

    with writing_behind() as writer:
        writer.submit(publish)
        assert entered.wait(10)  # `submit` came back though the writer is still at it
        release.set()


def fail():
    raise StorageFullError("the disk is full")


def test_an_error_surfaces_at_the_next_submission_and_nothing_more_is_written():
    published = []

    def submit_two():
        with writing_behind() as writer:
            writer.submit(fail)
            writer.submit(lambda: published.append(1))

    with pytest.raises(StorageFullError, match="the disk is full"):
        submit_two()
    assert published == []


def test_an_error_of_the_last_surfaces_at_the_end():
    with pytest.raises(StorageFullError), writing_behind() as writer:
        writer.submit(fail)


def test_what_was_submitted_is_published_where_the_block_raises():
    published = []

    def be_interrupted():
        with writing_behind() as writer:
            writer.submit(lambda: (time.sleep(0.05), published.append(1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert published == [1]
