"""The share of one of several processes in the shards of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Worker:
    """The share of one of several processes: shards k with k mod `count` = `index`."""

    index: int = 0
    count: int = 1

    def takes(self, shard: int) -> bool:
        """Tell whether a shard is this worker's."""
        return shard % self.count == self.index
