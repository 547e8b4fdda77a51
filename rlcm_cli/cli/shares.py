"""What the workers of a phase have done together, for the closing line and JSON of a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcm_cli.wording import count

if TYPE_CHECKING:
    from rlcm_cli.processes.worker import Worker
    from rlcm_cli.runs.run import Run


@dataclass(frozen=True)
class ShareProgress:
    """How many shards of some rollouts are done, by all workers whose files are here."""

    done: int
    total: int
    waiting_for: tuple[int, ...]
    """Numbers, as in `--worker`, of the workers whose shares are incomplete."""

    @property
    def complete(self) -> bool:
        """Whether the next phase can start."""
        return self.done == self.total

    def describe(self, done: str) -> str:
        """Describe the progress; `done`: what was done to the shards, such as `sampled`."""
        if self.complete:
            return done
        workers = count(len(self.waiting_for), "worker").partition(" ")[2]
        numbers = ", ".join(map(str, self.waiting_for))
        whom = f"; waiting for {workers} {numbers}" if numbers else ""
        return f"{self.done} of {count(self.total, 'shard')} {done}{whom}"

    def to_json(self) -> dict[str, Any]:
        """Return the entries of the JSON line."""
        return {"complete": self.complete, "shards": self.total, "shards_done": self.done}


def follow_sampling(run: Run, worker: Worker, iteration: int) -> ShareProgress:
    """Count the sampled shards of a rollout."""
    from rlcm_cli.store.manifest import read_manifest
    from rlcm_cli.store.rollouts import missing_shards

    manifest = read_manifest(run.layout.manifest(iteration))
    return _count(len(manifest.shards), set(missing_shards(run.layout, manifest)), worker)


def follow_scoring(run: Run, worker: Worker, iterations: Sequence[int], directories: Sequence[str]) -> ShareProgress:
    """Count the shards of some rollouts that have the rewards of all given folders."""
    from rlcm_cli.store.manifest import read_manifest
    from rlcm_cli.store.rollouts import missing_rewards

    found = []
    for iteration in iterations:
        manifest = read_manifest(run.layout.manifest(iteration))
        lacking = {n for directory in directories for n in missing_rewards(run.layout, manifest, directory)}
        found.append(_count(len(manifest.shards), lacking, worker))
    workers = {number for progress in found for number in progress.waiting_for}
    return ShareProgress(sum(one.done for one in found), sum(one.total for one in found), tuple(sorted(workers)))


def _count(total: int, missing: set[int], worker: Worker) -> ShareProgress:
    others = {number % worker.count for number in missing} if worker.count > 1 else set()
    return ShareProgress(total - len(missing), total, tuple(sorted(others)))
