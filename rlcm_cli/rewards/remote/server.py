"""The reward server: rewards behind HTTP, for one or many clients at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.base.contract import Reward
from rlcm_cli.rewards.base.registry import RewardSpec, load_reward
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
from rlcm_cli.rewards.remote.receiving import Buffers, ReceivingProtocol, await_first_bytes, read_body

UPLOAD_SECONDS = 300.0
"""Time that a client has to send a request."""
PAUSE_SECONDS, SLOWEST_BYTES = 10.0, 64 * 1024
"""A request that is being received may be this many seconds behind this many bytes a second: it holds memory that
others wait for."""
REQUESTS_HELD = 32
"""Requests in memory at a time; others wait unread, so that memory is bounded by this times the largest request."""
KEEP_ALIVE_SECONDS = 75

_RESERVED = ("health", "metrics", "docs", "redoc")
_SECRET = re.compile(r"(^|_)(token|secret|password|credentials?|api_?key)$", re.IGNORECASE)
_BEARER = HTTPBearer(auto_error=False, description="The server's token, where it was started with one.")
_log = logging.getLogger("rlcm.rewards")


@dataclass(frozen=True)
class ServedReward:
    """A reward that is loaded, with what identifies it.

    Attributes:
        spec: Its name and settings.
        reward: Scores.
        revision: Digest of all that its numbers depend on.
    """

    spec: RewardSpec
    reward: Reward
    revision: str

    @property
    def name(self) -> str:
        """Its name in the address."""
        return self.spec.slug


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


def load_served(specs: Sequence[RewardSpec]) -> list[ServedReward]:
    """Load rewards to serve.

    Raises:
        ConfigError: If one is unknown or set wrongly, or two would have the same address.
        RewardError: If one cannot run here.
    """
    slugs = [spec.slug for spec in specs]
    for slug in slugs:
        if slug in _RESERVED or slugs.count(slug) > 1:
            raise ConfigError(f"two things would have the address /{slug} on the server; serve them apart")
    served = []
    for spec in specs:
        reward = load_reward(spec)
        served.append(ServedReward(spec, reward, _revision(spec, reward)))
    return served


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that may be shown: without those that are secret by their name or hold a password."""
    return {
        key: value
        for key, value in settings.items()
        if not _SECRET.search(key) and not (isinstance(value, str) and re.search(r"://[^/]*@", value))
    }


def read_token(host: str, variable: str, *, named: bool) -> str | None:
    """Read the token that clients must send.

    Args:
        host: Address that the server binds.
        variable: Name of the environment variable.
        named: The variable was asked for, so that it must be set.

    Raises:
        ConfigError: If there is none and one is needed, because other machines can reach the server; if it holds
            what an HTTP header cannot.
    """
    token = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(f"{variable} holds what no token has (spaces, or letters outside ASCII); mend it")
    if not token and (named or not _is_loopback(host)):
        reason = f"--token-env {variable}" if named else f"--host {host} lets other machines in"
        raise ConfigError(
            f"{reason}, and the environment variable {variable} is not set; choose a token that the clients set too: "
            f'export {variable}="$(openssl rand -hex 16)"'
        )
    return token or None


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket. Raises `ConfigError` where it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port} cannot be listened on ({reason}); choose others") from None


def serve(app: FastAPI, sock: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT; those under way are finished first, a second SIGINT breaks them off."""
    # glibc gives memory back to the system at once when more of it is free than the largest block that was ever
    # freed, and what is asked for again costs a page fault every 4 KiB. This block makes it keep some.
    bytes(16 * 2**20)
    # uvicorn raises the signal that ended it once more, for the handlers that were there before.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(configure(app)).run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def configure(app: FastAPI) -> uvicorn.Config:
    """Give uvicorn's configuration for the application."""
    return uvicorn.Config(
        app,
        # With bodies of megabytes asyncio's own loop is 1.7 times as fast as uvloop, which reads in smaller pieces.
        loop="asyncio",
        http=ReceivingProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def build_app(
    rewards: Sequence[ServedReward],
    *,
    token: str | None = None,
    limits: Limits = Limits(),
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> FastAPI:
    """Make the application.

    Args:
        rewards: What it serves.
        token: What clients must send; None: nothing.
        limits: What it takes.
        device: Where the images of rewards go that run a network.
    """
    registry = CollectorRegistry()
    metrics = _Metrics(registry)
    worker = ThreadPoolExecutor(1, thread_name_prefix="rlcm-score")
    services = {served.name: _Service(served, limits, device, worker, metrics) for served in rewards}
    slots = asyncio.Semaphore(REQUESTS_HELD)
    buffers = Buffers()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown()

    async def check_token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        given = credentials.credentials if credentials else ""
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(
                401, "this server wants its bearer token, and this is not it", {"WWW-Authenticate": "Bearer"}
            )

    def find(name: str) -> _Service:
        if name not in services:
            raise HTTPException(404, f"there is no reward {_named(name)} here; this server has {', '.join(services)}")
        return services[name]

    app = FastAPI(
        title="rlcm reward server",
        version=str(VERSION),
        summary="Gives images their rewards.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    protected = APIRouter(
        dependencies=[Depends(check_token)],
        responses={401: {"model": bodies.Refusal, "description": "No token, or not the server's."}},
    )

    @app.get("/health")
    async def health() -> bodies.Health:
        """Tell that the server is up; needs no token."""
        return bodies.Health(status="ok", rewards=list(services))

    @protected.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return app.openapi()

    @protected.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def show_metrics() -> Response:
        """Give what the server has done so far, for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @protected.get("/{name}", responses={404: {"model": bodies.Refusal}})
    async def describe(name: str) -> bodies.Description:
        """Say what a reward is."""
        return find(name).describe()

    @protected.post(
        "/{name}",
        response_model=bodies.ScoreAnswer,
        responses={
            200: bodies.ANSWER_SCHEMA,
            **{
                status: {"model": bodies.Refusal, "description": why}
                for status, why in {
                    400: "The body is no such request.",
                    404: "There is no such reward.",
                    408: "The request did not arrive in time.",
                    413: "The request is larger than `max_bytes`.",
                    415: "The body is neither JSON nor safetensors.",
                    422: "The reward is not defined for these images.",
                    500: "The reward failed; the server's log has the traceback.",
                }.items()
            },
        },
        openapi_extra={"requestBody": bodies.REQUEST_SCHEMA},
    )
    async def score(name: str, request: Request) -> Response:
        """Give images their rewards, in the order of the request and in its form."""
        service = find(name)
        try:
            service.check_kind(request)
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    # Before it takes a place that others wait for.
                    await await_first_bytes(request)
            except TimeoutError:
                raise _late() from None
            async with slots:
                response = await service.score(request, buffers)
        except HTTPException as error:
            metrics.requests.labels(name, error.status_code).inc()
            raise
        metrics.requests.labels(name, response.status_code).inc()
        return response

    app.include_router(protected)
    return app


class _Metrics:
    """What Prometheus is told."""

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


class _Service:
    """One reward: from requests to responses."""

    def __init__(
        self, served: ServedReward, limits: Limits, device: torch.device, worker: Executor, metrics: _Metrics
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
        """Say what the reward is."""
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
            raise HTTPException(415, f"the Content-Type is {_named(kind)}, not {MEDIA_TYPE} or application/json")

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


def _named(text: str) -> str:
    return quote_foreign(repr(text), longest=60)


def _revision(spec: RewardSpec, reward: Reward) -> str:
    settings = public_settings(spec.resolved)
    identity = {
        "name": spec.slug,
        "version": spec.entry.version,
        # A file or folder here has another place elsewhere; what is in it is digested in the reward's revision.
        "settings": {
            key: value for key, value in settings.items() if not (isinstance(value, str) and _is_path(value))
        },
        "revision": reward.revision,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_path(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
