"""Gathers of sharded weights, matched between processes whose work differs.

Where each process of a job holds only a part of the denoiser's weights, the weights of a block are gathered from all
processes just before it computes. All must take part in every gather, in one order. But the processes do not make the
same calls at the same time: one draws while another still decodes, one has fewer samples, one goes backward.

So before every gather they agree: each says which block it computes with next, or that it has nothing to compute and
waits for the others. Then all gather each block that somebody asked for, in the order of their numbers, and those who
did not ask for it drop it again. Nobody passes a point where all meet before all have come to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from rlcm_cli.processes.noticing import noticing_loss


@dataclass(frozen=True)
class ShardedBlock:
    """The weights of one block, of which each process holds a part."""

    gather: Callable[[], object]
    """Bring all of them here; the other processes must do so at the same time."""
    drop: Callable[[], object]
    """Keep only this process's part."""
    is_gathered: Callable[[], bool]
    """Return whether all of them are here."""


@dataclass
class Pace:
    """What keeps the gathers of a job's processes equal; without blocks there is nothing to keep."""

    blocks: list[ShardedBlock] = field(default_factory=list)
    """In the same order in all processes."""
    overlaps: bool = False
    """Whether who computes with a block gathers it itself, next to the computation before it, where nobody asks for
    another: on a GPU, where FSDP has a stream for that."""

    def ask(self, number: int) -> None:
        """Gather a block that this process computes with next, and meanwhile what others ask for.

        Raises `WorkerLostError` where a process is gone.
        """
        if self.blocks[number].is_gathered():
            return
        asked = self._agree({number})
        if asked != [number] or not self.overlaps:
            self._gather(asked, number)

    def keep_company(self) -> None:
        """Gather what others ask for, until all processes have come here. Raises as `ask`."""
        while self.blocks and (asked := self._agree(())):
            self._gather(asked, None)

    def _agree(self, own: Collection[int]) -> list[int]:
        """Return the numbers of the blocks that any process asks for, in their order."""
        asked = torch.zeros(len(self.blocks), dtype=torch.uint8)
        asked[list(own)] = 1
        with noticing_loss():  # by gloo: NCCL would wait for a process that is gone
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        return asked.nonzero().flatten().tolist()

    def _gather(self, asked: Collection[int], own: int | None) -> None:
        for number in asked:
            block = self.blocks[number]
            kept = number == own or block.is_gathered()
            with noticing_loss():
                if block.is_gathered():  # FSDP would find nothing to do, and leave the others waiting
                    block.drop()
                block.gather()
            if not kept:
                block.drop()
