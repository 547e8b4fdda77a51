"""The processes of one job, that `torchrun` or `accelerate launch` started with the same command line.

They share the work and not the decisions: plans, minibatches and the split of shards are those of one process, each
does its part of them, and what the parts make is added up. So a result depends on the number of processes by the
rounding of that sum, and a run may be resumed with more or fewer of them. All read the run's files; where only one
may write, the leader does.

The launchers' contract is that of `torch.distributed` (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), so
that is what is used, and not accelerate's `PartialState`: it keeps its state for the whole process, and has one
backend where we need two, CPU tensors being exchanged by gloo on a machine with GPUs as well.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from rlcm_cli.processes.noticing import noticing_loss
from rlcm_cli.processes.pace import Pace
from rlcm_cli.processes.worker import Worker


@dataclass(frozen=True)
class Processes:
    """One of `size` processes, `rank` from 0. Of a single process every method gives back what it is given.

    What is sent must be sent by all, in the same order. Each method raises `WorkerLostError` where a process is
    gone.
    """

    rank: int = 0
    size: int = 1
    pace: Pace = field(default_factory=Pace, compare=False, repr=False)
    """Of the gathers of sharded weights; without any, where each process holds all."""

    @property
    def leads(self) -> bool:
        """Whether this process prints, and writes what only one may write."""
        return self.rank == 0

    def divide(self, share: Worker = Worker()) -> Worker:
        """Return the shards of this process among those of a job, which may be one of several jobs."""
        return Worker(share.index * self.size + self.rank, share.count * self.size)

    def part(self, count: int) -> range:
        """Return the items of this process among `count`: they follow one another, and the parts differ by one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum of those of all processes, of equal shape and dtype; all get the same bytes."""
        if self.size == 1:
            return
        self.pace.keep_company()
        sent = tensor if tensor.is_cuda else tensor.cpu()  # neither backend knows MPS
        with noticing_loss():
            dist.all_reduce(sent)
        tensor.copy_(sent)

    def gather(self, record: Mapping[str, float]) -> list[dict[str, float]]:
        """Return the records of all processes, by rank; their names may differ."""
        if self.size == 1:
            return [dict(record)]
        text = torch.frombuffer(bytearray(json.dumps(record), "utf-8"), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(text)
        self.sum(lengths)
        texts = torch.zeros(self.size, int(lengths.max()), dtype=torch.uint8)
        texts[self.rank, : len(text)] = text
        self.sum(texts)
        return [
            json.loads(row[:length].numpy().tobytes()) for row, length in zip(texts, lengths.tolist(), strict=True)
        ]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.sum(torch.zeros(1))

    def leave(self) -> None:
        """End the connections, once nothing more is to be exchanged.

        After an error there is no need to: the process ends, and that is how the others learn of it.
        """
        if self.size > 1:
            self.pace.keep_company()
            dist.destroy_process_group()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
