"""Requests of concurrent clients, joined into calls of one reward function."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlcm_cli.rewards.base.contract import Reward
from rlcm_cli.rewards.remote.protocol import Batch

Rewards = np.ndarray[Any, Any]
Observer = Callable[[int, float], None]


@dataclass(eq=False)
class _Job:
    batch: Batch
    arrived: float
    rewards: asyncio.Future[Rewards] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """A queue before one reward.

    Requests with images of one size that arrive within `wait` seconds of the first, or while the worker is busy,
    are scored in one call, of at most `most` images; a larger request is its own call. Requests to a
    set-level reward are not joined: each brings whole groups, and groups of two clients may have the same number.

    Args:
        reward: What scores.
        worker: An executor with one thread.
        device: Where the images of a reward that runs a network go.
        most: Images a call at most.
        wait: Seconds that the first request waits for others.
        observe: Gets the number of images and the seconds of each call.
    """

    def __init__(
        self, reward: Reward, worker: Executor, *, device: torch.device, most: int, wait: float, observe: Observer
    ) -> None:
        self._reward = reward
        self._worker = worker
        self._device = device if reward.neural else torch.device("cpu")
        self._most = 0 if reward.set_level else most
        self._wait = wait
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._arrival = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Count the images that wait for the worker."""
        return sum(len(job.batch) for job in self._jobs)

    async def score(self, batch: Batch) -> Rewards:
        """Return the rewards of a batch, float32 [B]; raises what the reward raises for it."""
        job = _Job(batch, asyncio.get_running_loop().time())
        self._jobs.append(job)
        self._arrival.set()
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await job.rewards

    async def _run(self) -> None:
        while self._jobs:
            jobs = [job for job in await self._collect() if not job.rewards.cancelled()]
            started = time.perf_counter()
            found = await asyncio.get_running_loop().run_in_executor(self._worker, self._score, jobs)
            self._observe(sum(len(job.batch) for job in jobs), time.perf_counter() - started)
            _deliver(jobs, found)
            jobs.clear()  # the memory of the images is wanted for the next request
        self._runner = None

    async def _collect(self) -> list[_Job]:
        """Take the first request from the queue, and those that can join it."""
        jobs = [self._jobs.popleft()]
        shape = jobs[0].batch.images.shape[1:]
        room = self._most - len(jobs[0].batch)
        while room > 0:
            if not self._jobs:
                self._arrival.clear()
                try:
                    async with asyncio.timeout_at(jobs[0].arrived + self._wait):
                        await self._arrival.wait()
                except TimeoutError:
                    break
            following = self._jobs[0].batch
            if following.images.shape[1:] != shape or len(following) > room:
                break
            jobs.append(self._jobs.popleft())
            room -= len(following)
        return jobs

    def _score(self, jobs: list[_Job]) -> list[Rewards | Exception]:
        """Score requests in one call; where that fails one by one, so that a fault stays with its request."""
        batches = [job.batch for job in jobs]
        if len(batches) > 1:
            try:
                rewards = self._call(_join(batches))
            except Exception:  # noqa: S110
                pass
            else:
                return list(np.split(rewards, np.cumsum([len(batch) for batch in batches])[:-1]))
        found: list[Rewards | Exception] = []
        for batch in batches:
            try:
                found.append(self._call(batch))
            except Exception as error:
                found.append(error)
        return found

    def _call(self, batch: Batch) -> Rewards:
        images = torch.from_numpy(batch.images).to(self._device)
        rewards: Rewards = self._reward.score(images, batch.prompts, batch.metadata).numpy()
        return rewards


def _join(batches: list[Batch]) -> Batch:
    return Batch(
        np.concatenate([batch.images for batch in batches]),
        [prompt for batch in batches for prompt in batch.prompts],
        [known for batch in batches for known in batch.metadata],
    )


def _deliver(jobs: list[_Job], found: list[Rewards | Exception]) -> None:
    for job, rewards in zip(jobs, found, strict=True):
        if job.rewards.cancelled():
            continue
        if isinstance(rewards, Exception):
            job.rewards.set_exception(rewards)
        else:
            job.rewards.set_result(rewards)
