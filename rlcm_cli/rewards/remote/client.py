"""The reward function that asks reward servers: round-robin, with patience for one that is away."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.http.client import HttpClient, NoReplyError
from rlcm_cli.rewards.http.pool import ServerPool
from rlcm_cli.rewards.remote.protocol import (
    MEDIA_TYPE,
    TOKEN_VARIABLE,
    VERSION,
    Batch,
    Metadata,
    ProtocolError,
    decode_answer,
    encode_batch,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

REQUEST_BYTES = 64 * 2**20
"""Most bytes of images in one request; fewer where a server takes less."""
REQUESTS_A_SERVER = 2
"""Requests of one batch under way to a server: it scores one while the next one arrives."""

_ANSWER_BYTES = 2**20
_LONGEST_REVISION = 200
_CHECK_SERVER = "check the server and its log"
_REFUSALS = {
    401: f"put its token into the environment variable {TOKEN_VARIABLE}",
    403: f"put its token into the environment variable {TOKEN_VARIABLE}",
    404: "name one of its rewards in the address",
    413: "start it with a larger --max-mb, or score smaller images or groups",
}
_AWAY = (502, 503, 504)


def connect(addresses: Sequence[str], *, timeout: float, patience: float) -> RemoteReward | RemoteSetReward:
    """Make the reward function of one or several servers; waits for the first one that answers.

    Args:
        addresses: `http://host:8000/NAME`.
        timeout: Seconds that a server may take to answer one request.
        patience: Seconds that a request is tried again for while no server answers.

    Raises:
        ConfigError: If a setting is not a number above 0 (`patience`: 0 or above).
        RewardError: If no server answers in time, one refuses, or two give different rewards.
    """
    for name, value, least in (("timeout", timeout, 1e-3), ("patience", patience, 0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise ConfigError(f"reward {addresses[0]!r}: {name} {value!r} must be a number of seconds")
    servers = Servers(addresses, timeout=float(timeout), patience=float(patience), token=_read_token())
    return RemoteSetReward(servers) if servers.description.set_level else RemoteReward(servers)


class RemoteReward:
    """A `RewardFn` whose work is done by servers."""

    set_level = False

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.revision = servers.description.revision

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata, /) -> Tensor:
        """Return one reward per image."""
        import torch

        pixels = images.cpu().contiguous().numpy()
        rows = list(self._servers.cut(len(images), pixels[:1].nbytes))
        parts = self._servers.score([Batch(pixels[a:b], list(prompts[a:b]), _plain(metadata[a:b])) for a, b in rows])
        return torch.cat([torch.empty(0), *map(torch.from_numpy, parts)])


class RemoteSetReward:
    """A `SetRewardFn` whose work is done by servers; a group is one request."""

    set_level = True

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.revision = servers.description.revision

    def __call__(self, images: Tensor, prompt: str, metadata: Metadata, /) -> Tensor:
        """Return one reward per image of the group."""
        import torch

        rows = [{"group": 0, **known} for known in metadata]
        (rewards,) = self._servers.score([Batch(images.cpu().contiguous().numpy(), [prompt] * len(rows), rows)])
        return torch.from_numpy(rewards)


@dataclass(frozen=True)
class ServerDescription:
    """What a server says of its reward: see `rlcm_cli.rewards.remote.bodies.Description`."""

    revision: str
    set_level: bool
    max_bytes: int


class Servers:
    """Servers of one and the same reward, asked in turn."""

    def __init__(self, addresses: Sequence[str], *, timeout: float, patience: float, token: str | None) -> None:
        clients = [_make_client(address, timeout, token) for address in addresses]
        advice = f"start {'it' if len(clients) == 1 else 'one'} (`rlcm serve-reward`) or fix the address"
        self._pool = ServerPool(clients, patience=patience, advice=advice)
        self._count = len(clients)
        first, self.description = self._pool.ask(_describe, threading.Event())
        self._first = first
        most = self.description.max_bytes
        for client in clients:
            if client is first:
                continue
            try:
                description = _describe(client)
            except NoReplyError as error:
                self._pool.note_absence(client, error)
                continue
            self._check_revision(client, description.revision)
            most = min(most, description.max_bytes)
        # An eighth is left for the prompts and metadata.
        self._image_bytes = min(REQUEST_BYTES, most * 7 // 8)

    def cut(self, count: int, image_bytes: int) -> Iterator[tuple[int, int]]:
        """Cut a batch into even requests (first row, last row + 1) of bounded bytes, at least one per server."""
        if not count:
            return
        fitting = max(1, self._image_bytes // image_bytes)
        parts = min(count, max(-(-count // fitting), self._count))
        for part in range(parts):
            yield part * count // parts, (part + 1) * count // parts

    def score(self, batches: Sequence[Batch]) -> list[np.ndarray[Any, Any]]:
        """Return the rewards of each batch, float32 [B]. Raises `RewardError`."""
        return self._pool.map(self._score, batches, concurrency=REQUESTS_A_SERVER * self._count)

    def _score(self, batch: Batch, stop: threading.Event) -> np.ndarray[Any, Any]:
        try:
            head, images = encode_batch(batch)
        except ProtocolError as error:
            raise RewardError(f"{self._first.name} cannot be asked: {error}; fix the metadata") from None
        client, body = self._pool.ask(lambda client: _post(client, [head, images]), stop)
        try:
            answer = decode_answer(body)
        except ProtocolError as error:
            raise client.malformed(str(error)) from None
        self._check_revision(client, answer.revision)
        return _check_rewards(client, answer.rewards, batch)

    def _check_revision(self, client: HttpClient, revision: str) -> None:
        if revision != self.description.revision:
            raise RewardError(
                f"{client.name} serves revision {client.quote(revision)}, and the scores so far are of revision "
                f"{self.description.revision} ({self._first.url}); scores of the two must not be mixed: serve the "
                "same reward, settings and weights everywhere, then run the same command again"
            )


def _make_client(url: str, timeout: float, token: str | None) -> HttpClient:
    return HttpClient(
        url,
        name=f"reward server {url}",
        timeout=timeout,
        advice=_CHECK_SERVER,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        secret=token or "",
        proxied=False,
    )


def _describe(client: HttpClient) -> ServerDescription:
    """Ask what the server's reward is. Raises `NoReplyError` and `RewardError`."""
    body = _exchange(client, "GET", {"Accept": "application/json"}, [], 2**20)
    try:
        said = json.loads(body)
        version, revision = said["protocol"], said["revision"]
        description = ServerDescription(revision, said["set_level"], said["max_bytes"])
        kinds = (type(revision), type(description.set_level), type(description.max_bytes))
        if kinds != (str, bool, int) or description.max_bytes < 1:
            raise ValueError("a value of another type")
        if not revision.isprintable() or len(revision) > _LONGEST_REVISION:
            raise ValueError("a revision that is not a short line")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RewardError(
            f"{client.name} does not describe itself as one ({type(error).__name__}: {client.quote(str(error))}); "
            "name the address of an `rlcm serve-reward`"
        ) from None
    if version != VERSION:
        raise RewardError(
            f"{client.name} speaks version {client.quote(repr(version))} of the protocol, not {VERSION}; install the "
            "same version of rlcm on both sides"
        )
    return description


def _post(client: HttpClient, body: Sequence[bytes | memoryview]) -> bytes:
    """Send the parts of a request and return the answer's bytes. Raises `NoReplyError` and `RewardError`."""
    headers = {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE}
    return _exchange(client, "POST", headers, body, _ANSWER_BYTES + len(body[0]))


def _exchange(
    client: HttpClient,
    method: str,
    headers: Mapping[str, str],
    body: Sequence[bytes | memoryview],
    most_bytes: int,
) -> bytes:
    reply = client.exchange(method, headers, body=body, most_bytes=most_bytes)
    if reply.status == 200:
        return reply.body
    if reply.status in _AWAY:
        raise NoReplyError(f"status {reply.status}")
    if 300 <= reply.status < 400:
        raise RewardError(
            f"{client.name} redirects to {client.quote(reply.headers.get('Location') or 'nowhere')}, which is not "
            "followed; name that address itself if you trust it"
        )
    said = f": {client.quote(detail, 500)}" if (detail := _detail(reply.body)) else ""
    advice = f"; {_REFUSALS.get(reply.status, _CHECK_SERVER)}" if reply.status != 422 else ""
    raise RewardError(f"{client.name} refused the request (status {reply.status}){said}{advice}")


def _check_rewards(client: HttpClient, rewards: np.ndarray[Any, Any], batch: Batch) -> np.ndarray[Any, Any]:
    import numpy as np

    if len(rewards) != len(batch):
        raise RewardError(f"{client.name} returned {len(rewards)} rewards for {len(batch)} images; {_CHECK_SERVER}")
    broken = np.flatnonzero(~np.isfinite(rewards))
    if len(broken):
        first = int(broken[0])
        raise RewardError(
            f"{client.name} returned {rewards[first]} for {len(broken)} of {len(batch)} images, the first with prompt "
            f"{batch.prompts[first]!r}, metadata {dict(batch.metadata[first])}; {_CHECK_SERVER}"
        )
    return rewards


def _plain(metadata: Metadata) -> list[dict[str, object]]:
    return [dict(known) for known in metadata]


def _detail(data: bytes) -> str:
    """Return the one line that a server says of a refusal."""
    try:
        said = json.loads(data)["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = ""
    return said.strip() if isinstance(said, str) else ""


def _read_token() -> str | None:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(f"{TOKEN_VARIABLE} holds what no token has (spaces, or letters outside ASCII); fix it")
    return token or None
