"""The application of a reward server: its addresses, its token, and the order in which requests are taken."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from rlcm_cli.rewards.remote import bodies
from rlcm_cli.rewards.remote.protocol import VERSION
from rlcm_cli.rewards.remote.receiving import Buffers
from rlcm_cli.rewards.remote.served import ServedReward
from rlcm_cli.rewards.remote.service import Limits, RewardService, ServiceMetrics, quote_name

REQUESTS_HELD = 32
"""Requests in memory at a time; others wait unread, so that memory is bounded by this times the largest request."""

_BEARER = HTTPBearer(auto_error=False, description="The server's token, where it was started with one.")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.Refusal, "description": why}
    for status, why in {
        400: "The body is not such a request.",
        404: "There is no such reward.",
        408: "The request did not arrive in time.",
        413: "The request is larger than `max_bytes`.",
        415: "The body is neither JSON nor safetensors.",
        422: "The reward is not defined for these images.",
        500: "The reward failed; the server's log has the traceback.",
    }.items()
}


def build_app(
    rewards: Sequence[ServedReward],
    *,
    token: str | None = None,
    limits: Limits = Limits(),
    device: torch.device = torch.device("cpu"),
) -> FastAPI:
    """Make the application.

    Args:
        rewards: The rewards that it serves.
        token: What clients must send; None: nothing.
        limits: What it takes.
        device: Where the images of rewards go that run a network.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="rlcm-score")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown()

    app = FastAPI(
        title="rlcm reward server",
        version=str(VERSION),
        summary="Returns the rewards of images.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    services = {served.name: RewardService(served, limits, device, worker, metrics) for served in rewards}
    protected = APIRouter(
        dependencies=[Depends(_TokenCheck(token))],
        responses={401: {"model": bodies.Refusal, "description": "No token, or not the server's."}},
    )
    _add_information(app, protected, list(services), registry)
    _add_rewards(protected, services, metrics)
    app.include_router(protected)
    return app


class _TokenCheck:
    """Refuses a request without the server's token."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def __call__(self, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        given = credentials.credentials if credentials else ""
        if self._token is not None and not hmac.compare_digest(given.encode(), self._token.encode()):
            raise HTTPException(
                401, "this server wants its bearer token, and this is not it", {"WWW-Authenticate": "Bearer"}
            )


def _add_information(app: FastAPI, protected: APIRouter, names: list[str], registry: CollectorRegistry) -> None:
    """Add the addresses that tell about the server."""

    @app.get("/health")
    async def health() -> bodies.Health:
        """Answer that the server is up; needs no token."""
        return bodies.Health(status="ok", rewards=names)

    @protected.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return app.openapi()

    @protected.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def show_metrics() -> Response:
        """Return what the server has done so far, for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_rewards(protected: APIRouter, services: dict[str, RewardService], metrics: ServiceMetrics) -> None:
    """Add the addresses of the rewards."""
    slots = asyncio.Semaphore(REQUESTS_HELD)
    buffers = Buffers()

    def find(name: str) -> RewardService:
        if name not in services:
            raise HTTPException(
                404, f"there is no reward {quote_name(name)} here; this server has {', '.join(services)}"
            )
        return services[name]

    @protected.get("/{name}", responses={404: {"model": bodies.Refusal}})
    async def describe(name: str) -> bodies.Description:
        """Return what a reward is."""
        return find(name).describe()

    @protected.post(
        "/{name}",
        response_model=bodies.ScoreAnswer,
        responses={200: bodies.ANSWER_SCHEMA, **_REFUSALS},
        openapi_extra={"requestBody": bodies.REQUEST_SCHEMA},
    )
    async def score(name: str, request: Request) -> Response:
        """Return the rewards of images, in the order of the request and in its form."""
        service = find(name)
        try:
            service.check_kind(request)
            # Before it takes a slot that others wait for.
            await service.await_body(request)
            async with slots:
                response = await service.score(request, buffers)
        except HTTPException as error:
            metrics.requests.labels(name, error.status_code).inc()
            raise
        metrics.requests.labels(name, response.status_code).inc()
        return response
