"""The pace of gathers: who asks, who keeps company, and what is dropped again."""

import threading
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist

from rlcm_cli.errors import WorkerLostError
from rlcm_cli.processes import pace as pace_module
from rlcm_cli.processes.job import Processes
from rlcm_cli.processes.noticing import noticing_loss
from rlcm_cli.processes.pace import Pace, ShardedBlock


@dataclass
class Job:
    """Two processes as threads: what one says reaches the other, and each records the gathers it takes part in."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))
    said: list[torch.Tensor] = field(default_factory=lambda: [torch.empty(0)] * 2)
    records: list[list[str]] = field(default_factory=lambda: [[], []])
    local: threading.local = field(default_factory=threading.local)

    def all_reduce(self, tensor, operation):
        assert operation == dist.ReduceOp.MAX
        self.said[self.local.rank] = tensor.clone()
        self.meeting.wait()
        tensor.copy_(torch.maximum(*self.said))
        self.meeting.wait()

    def block(self, rank, name):
        here = [False]

        def gather():
            assert not here[0], "nothing would be exchanged, and the other would wait"
            here[0] = True
            self.records[rank].append(name)

        def drop():
            here[0] = False

        return ShardedBlock(gather, drop, lambda: here[0])

    def run(self, *works):
        """Run each process's work on its `Pace`; return the gathers of each, and the blocks that it has at the end."""
        paces = [Pace([self.block(rank, name) for name in "abc"]) for rank in range(2)]
        errors = []

        def start(rank):
            self.local.rank = rank
            try:
                works[rank](paces[rank])
                paces[rank].keep_company()
            except Exception as error:
                errors.append(error)
                self.meeting.abort()

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        kept = [
            "".join(n for n, block in zip("abc", pace.blocks, strict=True) if block.is_gathered()) for pace in paces
        ]
        return ["".join(record) for record in self.records], kept


@pytest.fixture
def job(monkeypatch):
    job = Job()
    monkeypatch.setattr(pace_module.dist, "all_reduce", job.all_reduce)
    return job


def asks(*numbers):
    """Ask for blocks in turn, each dropped when the next is asked for."""

    def work(pace):
        for number in numbers:
            pace.ask(number)
            pace.blocks[number].drop()

    return work


def test_equal_work_is_gathered_once(job):
    assert job.run(asks(0, 1, 2, 1), asks(0, 1, 2, 1)) == (["abcb"] * 2, ["", ""])


def test_who_has_nothing_to_compute_gathers_along_and_drops(job):
    assert job.run(asks(0, 1), lambda pace: None) == (["ab"] * 2, ["", ""])


def test_other_blocks_are_gathered_in_the_order_of_their_numbers(job):
    (one, other), _ = job.run(asks(2, 1), asks(0, 1, 0, 2))
    assert one == other == "acbac"


def test_a_block_that_is_in_use_is_gathered_again_and_stays(job):
    def hold(pace):
        pace.ask(0)
        pace.ask(1)
        assert pace.blocks[0].is_gathered()
        pace.ask(0)  # there: nobody is asked

    assert job.run(hold, lambda pace: (pace.ask(1), pace.ask(0))) == (["abab"] * 2, ["ab"] * 2)


def test_a_block_that_all_ask_for_is_left_to_who_overlaps(job):
    def overlapping(pace):
        pace.overlaps = True
        pace.ask(0)
        assert not pace.blocks[0].is_gathered()

    assert job.run(overlapping, lambda pace: pace.ask(0)) == (["", "a"], ["", "a"])


def test_without_blocks_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(pace_module.dist, "all_reduce", None)
    Pace().keep_company()


def test_processes_meet_only_when_nobody_gathers(monkeypatch):
    order = []
    monkeypatch.setattr(Pace, "keep_company", lambda self: order.append("company"))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: order.append("sum"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: order.append("end"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    processes = Processes(0, 2)
    processes.wait()
    processes.leave()
    assert order == ["company", "sum", "company", "end"]


def test_a_lost_process_is_told_and_a_lack_of_memory_is_not_one(monkeypatch):
    def fail(error):
        raise error

    for words, told in [
        ("Connection closed by peer", "is gone"),
        ("Timed out waiting", "has not answered for 6 hours"),
    ]:
        with pytest.raises(WorkerLostError, match=told), noticing_loss():
            fail(RuntimeError(words))
    monkeypatch.setattr(pace_module.dist, "all_reduce", lambda *_: None)
    pace = Pace([ShardedBlock(lambda: fail(torch.OutOfMemoryError("none")), lambda: None, lambda: False)])
    with pytest.raises(torch.OutOfMemoryError):
        pace.ask(0)
