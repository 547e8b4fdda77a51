"""One served reward: from a request to its response, within limits."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.http.quoting import quote_foreign
from rlcm_cli.rewards.remote import bodies
from rlcm_cli.rewards.remote.batching import Batcher
from rlcm_cli.rewards.remote.protocol import (
    MEDIA_TYPE,
    VERSION,
    Answer,
    Batch,
    ProtocolError,
    decode_batch,
    encode_answer,
)
from rlcm_cli.rewards.remote.receiving import Buffers, await_first_bytes, read_body
from rlcm_cli.rewards.remote.served import ServedReward, public_settings

UPLOAD_SECONDS = 300.0
"""Time that a client has to send a request."""
PAUSE_SECONDS, SLOWEST_BYTES = 10.0, 64 * 1024
"""A request that is being received may be this many seconds behind this many bytes a second: it holds memory that
others wait for."""

_log = logging.getLogger("rlcm.rewards")


@dataclass(frozen=True)
class Limits:
    """What the server takes, and how it joins requests.

    Attributes:
        most_bytes: Of one request.
        batch: Images that are scored in one call at most.
        wait: Seconds that the first request of a call waits for others.
    """

    most_bytes: int = 64 * 2**20
    batch: int = 64
    wait: float = 0.005


class ServiceMetrics:
    """What the server reports to Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("rlcm_reward_requests", "Requests.", ["reward", "status"], registry=registry)
        self.images = Counter("rlcm_reward_images", "Images scored.", ["reward"], registry=registry)
        self.waiting = Gauge("rlcm_reward_images_waiting", "Images in the queue.", ["reward"], registry=registry)
        self.calls = Histogram(
            "rlcm_reward_call_images",
            "Images scored in one call.",
            ["reward"],
            buckets=[2**power for power in range(11)],
            registry=registry,
        )
        self.seconds = Histogram("rlcm_reward_call_seconds", "Seconds of a call.", ["reward"], registry=registry)


class RewardService:
    """One reward: from requests to responses."""

    def __init__(
        self, served: ServedReward, limits: Limits, device: torch.device, worker: Executor, metrics: ServiceMetrics
    ) -> None:
        self._served = served
        self._limits = limits
        name = served.name
        images, calls, seconds = (
            metrics.images.labels(name),
            metrics.calls.labels(name),
            metrics.seconds.labels(name),
        )

        def observe(count: int, duration: float) -> None:
            images.inc(count)
            calls.observe(count)
            seconds.observe(duration)

        self._batcher = Batcher(
            served.reward, worker, device=device, most=limits.batch, wait=limits.wait, observe=observe
        )
        metrics.waiting.labels(name).set_function(lambda: self._batcher.waiting)

    def describe(self) -> bodies.Description:
        """Return what the reward is."""
        spec, entry = self._served.spec, self._served.spec.entry
        return bodies.Description(
            name=self._served.name,
            description=entry.description,
            range=entry.value_range,
            version=entry.version,
            settings=public_settings(spec.resolved),
            set_level=self._served.reward.set_level,
            revision=self._served.revision,
            max_bytes=self._limits.most_bytes,
            protocol=VERSION,
        )

    def check_kind(self, request: Request) -> None:
        """Raise `HTTPException` for a body that is neither safetensors nor JSON."""
        kind = _kind(request)
        if kind not in (MEDIA_TYPE, "application/json"):
            raise HTTPException(415, f"the Content-Type is {quote_name(kind)}, not {MEDIA_TYPE} or application/json")

    async def await_body(self, request: Request) -> None:
        """Wait until some of a request's body has come; a refusal is an `HTTPException`."""
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await await_first_bytes(request)
        except TimeoutError:
            raise _late() from None

    async def score(self, request: Request, buffers: Buffers) -> Response:
        """Answer a request; a refusal is an `HTTPException`."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(started + min(PAUSE_SECONDS, UPLOAD_SECONDS)) as limit:

                def progress(received: int) -> None:
                    limit.reschedule(started + min(PAUSE_SECONDS + received / SLOWEST_BYTES, UPLOAD_SECONDS))

                buffer, size = await read_body(request, self._limits.most_bytes, buffers, progress)
        except TimeoutError:
            raise _late() from None
        except ClientDisconnect:
            raise HTTPException(400, "the request was broken off") from None
        kind = _kind(request)
        rewards = await self._score(kind, memoryview(buffer)[:size])
        buffers.give_back(buffer)
        answer = Answer(rewards, self._served.name, self._served.revision)
        if kind == MEDIA_TYPE:
            return Response(encode_answer(answer), media_type=MEDIA_TYPE)
        return JSONResponse(
            {
                "rewards": rewards.tolist(),
                "count": len(rewards),
                "reward": answer.reward,
                "revision": answer.revision,
            }
        )

    async def _score(self, kind: str, body: memoryview) -> np.ndarray[Any, Any]:
        try:
            # Not on the event loop: every other client would wait for it.
            batch = await asyncio.to_thread(self._decode, kind, body)
        except bodies.TooLargeError as error:
            raise HTTPException(413, quote_foreign(str(error))) from None
        except ProtocolError as error:
            raise HTTPException(400, quote_foreign(str(error))) from None
        try:
            return await self._batcher.score(batch)
        except RewardError as error:
            raise HTTPException(422, quote_foreign(str(error), longest=1000)) from None
        except Exception as error:
            _log.exception("reward %s failed", self._served.name)
            raise HTTPException(
                500, f"reward {self._served.name!r} failed ({type(error).__name__}); the server's log says where"
            ) from None

    def _decode(self, kind: str, body: memoryview) -> Batch:
        batch = decode_batch(body) if kind == MEDIA_TYPE else bodies.decode_json(body, self._limits.most_bytes)
        self._check_groups(batch)
        return batch

    def _check_groups(self, batch: Batch) -> None:
        if self._served.reward.set_level:
            for row, known in enumerate(batch.metadata):
                if not isinstance(known.get("group"), int | str):
                    raise ProtocolError(f"metadata {row} has no group, which this reward compares images within")


def _kind(request: Request) -> str:
    """Return the media type of a request's body."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _late() -> HTTPException:
    return HTTPException(408, f"the request came too slowly, or did not arrive within {UPLOAD_SECONDS:.0f} s")


def quote_name(text: str) -> str:
    """Return a name that a client sent, for a message."""
    return quote_foreign(repr(text), longest=60)
