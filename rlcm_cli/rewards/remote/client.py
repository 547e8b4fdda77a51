"""The reward function that asks reward servers: round-robin, with patience for one that is away."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import logging
import math
import os
import random
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.http.deadline import Deadline
from rlcm_cli.rewards.http.quoting import LONGEST, quote_foreign
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

CONNECT_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
REQUEST_BYTES = 64 * 2**20
"""Images of one request at most; fewer where a server takes less."""
REQUESTS_A_SERVER = 2
"""Requests of one batch under way to a server: it scores one while the next one arrives."""

_ANSWER_BYTES = 2**20
_LONGEST_REVISION = 200
_log = logging.getLogger("rlcm.rewards")
Result = TypeVar("Result")


def connect(addresses: Sequence[str], *, timeout: float, patience: float) -> RemoteReward | RemoteSetReward:
    """Make the reward function of one or several servers; waits for the first one that answers.

    Args:
        addresses: `http://host:8000/NAME`.
        timeout: Seconds that a server may take to answer one request.
        patience: Seconds that a request is tried again for while no server answers.

    Raises:
        ConfigError: If a setting is no number above 0 (`patience`: 0 or above).
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
        """Return one reward an image."""
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
        """Return one reward an image of the group."""
        import torch

        rows = [{"group": 0, **known} for known in metadata]
        (rewards,) = self._servers.score([Batch(images.cpu().contiguous().numpy(), [prompt] * len(rows), rows)])
        return torch.from_numpy(rewards)


@dataclass(frozen=True)
class Description:
    """What a server says of its reward: see `rlcm_cli.rewards.remote.bodies.Description`."""

    revision: str
    set_level: bool
    max_bytes: int


class Servers:
    """Servers of one and the same reward, taken in turn; one that is down is left out until it is tried again."""

    def __init__(self, addresses: Sequence[str], *, timeout: float, patience: float, token: str | None) -> None:
        self._servers = [_Server(address, timeout, token) for address in addresses]
        self._turn = itertools.count()
        self._patience = patience
        first, self.description = self._ask(_Server.describe, threading.Event())
        self._first = first
        most = self.description.max_bytes
        for server in self._servers:
            if server is first:
                continue
            try:
                description = server.describe()
            except _NoAnswerError as error:
                self._note_failure(server, error, self._patience)
                continue
            self._check_revision(server, description.revision)
            most = min(most, description.max_bytes)
        # An eighth is left for the prompts and metadata.
        self._image_bytes = min(REQUEST_BYTES, most * 7 // 8)

    def cut(self, count: int, image_bytes: int) -> Iterator[tuple[int, int]]:
        """Cut a batch into even requests (first row, last row + 1) of bounded bytes, at least one a server."""
        if not count:
            return
        fitting = max(1, self._image_bytes // image_bytes)
        parts = min(count, max(-(-count // fitting), len(self._servers)))
        for part in range(parts):
            yield part * count // parts, (part + 1) * count // parts

    def score(self, batches: Sequence[Batch]) -> list[np.ndarray[Any, Any]]:
        """Give the rewards of each batch, float32 [B]. Raises `RewardError`."""
        stop = threading.Event()
        if len(batches) < 2:
            return [self._score(batch, stop) for batch in batches]
        pool = ThreadPoolExecutor(REQUESTS_A_SERVER * len(self._servers), thread_name_prefix="rlcm-remote")
        futures = [pool.submit(self._score, batch, stop) for batch in batches]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # After an error, or Ctrl-C, nobody wants the rest: do not sit out the patience of the other requests.
            stop.set()
            for future in futures:
                future.cancel()
            for server in self._servers:
                server.hang_up()
            raise
        finally:
            pool.shutdown()
        return [future.result() for future in futures]

    def _score(self, batch: Batch, stop: threading.Event) -> np.ndarray[Any, Any]:
        try:
            head, images = encode_batch(batch)
        except ProtocolError as error:
            raise RewardError(
                f"reward server {self._first.url}: cannot be asked, {error}; mend the metadata"
            ) from None
        server, body = self._ask(lambda server: server.post([head, images]), stop)
        try:
            answer = decode_answer(body)
        except ProtocolError as error:
            raise server.malformed(str(error)) from None
        self._check_revision(server, answer.revision)
        return _checked(server, answer.rewards, batch)

    def _check_revision(self, server: _Server, revision: str) -> None:
        if revision != self.description.revision:
            raise RewardError(
                f"reward server {server.url} serves revision {server.quote(revision)}, and the scores so far are "
                f"of revision {self.description.revision} ({self._first.url}); scores of the two must not be mixed: "
                "serve the same reward, settings and weights everywhere, then run the same command again"
            )

    def _ask(self, ask: Callable[[_Server], Result], stop: threading.Event) -> tuple[_Server, Result]:
        """Ask one server after the other until one answers or the patience is over."""
        deadline = math.inf
        while True:
            server = self._choose()
            pause = server.retry_at - time.monotonic()
            if pause > 0 and stop.wait(pause):
                raise RewardError(f"reward server {server.url}: given up")
            try:
                result = ask(server)
            except _NoAnswerError as error:
                if stop.is_set():
                    raise RewardError(f"reward server {server.url}: given up") from None
                if error.stale:
                    continue
                now = time.monotonic()
                deadline = min(deadline, now + self._patience)
                if now >= deadline and not self._others_up(server):
                    raise RewardError(self._lost(error)) from None
                self._note_failure(server, error, deadline - now)
            else:
                server.failures = 0
                return server, result

    def _choose(self) -> _Server:
        """Give the next server in turn that is up, else the one that is to be tried first."""
        start, now = next(self._turn), time.monotonic()
        in_turn = [self._servers[(start + offset) % len(self._servers)] for offset in range(len(self._servers))]
        up = (server for server in in_turn if server.retry_at <= now)
        return next(up, None) or min(in_turn, key=lambda server: server.retry_at)

    def _others_up(self, server: _Server) -> int:
        return sum(other is not server and not other.failures for other in self._servers)

    def _note_failure(self, server: _Server, error: _NoAnswerError, left: float) -> None:
        """Leave a server out for a while, and say so; `left`: seconds until the request's patience is over."""
        with server.lock:
            now = time.monotonic()
            if server.retry_at > now:
                return  # another request has met the same failure, and said so
            server.failures += 1
            longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(server.failures - 1, 10))
            # Jitter, so that the clients of a server that returns do not come all at once.
            pause = random.uniform(0.5, 1) * longest  # noqa: S311
            others = self._others_up(server)
            if not others:
                pause = min(pause, left)
            server.retry_at = now + pause
        _log.warning(
            "reward server %s does not answer (%s); trying again in %.1f s, %s",
            server.url,
            error,
            pause,
            f"with {others} other{'s' if others > 1 else ''} meanwhile" if others else f"for {left:.0f} s more",
        )

    def _lost(self, error: _NoAnswerError) -> str:
        one = len(self._servers) == 1
        names = ", ".join(server.url for server in self._servers)
        return (
            f"reward server{'' if one else 's'} {names} did not answer for {self._patience:g} s ({error}); "
            f"start {'it' if one else 'one'} (`rlcm serve-reward`) or mend the address, then run the "
            "same command again: it goes on where it was"
        )


class _NoAnswerError(Exception):
    """A server that is away, or too slow; its message is the reason. Worth trying again.

    `stale`: it was a connection kept from before, which the server may have closed meanwhile: no reason to wait.
    """

    def __init__(self, reason: str, *, stale: bool = False) -> None:
        super().__init__(reason)
        self.stale = stale


_MEND_SERVER = "look at the server and its log"

_REFUSALS = {
    401: f"put its token into the environment variable {TOKEN_VARIABLE}",
    403: f"put its token into the environment variable {TOKEN_VARIABLE}",
    404: "name one of its rewards in the address",
    413: "start it with a larger --max-mb, or score smaller images or groups",
}
_AWAY = (502, 503, 504)


class _Server:
    """One server: its address, its open connections, and whether it is away."""

    def __init__(self, url: str, timeout: float, token: str | None) -> None:
        parts = urlsplit(url)
        self.url = url
        self.lock = threading.Lock()
        self.failures = 0
        self.retry_at = 0.0
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path
        self._timeout = timeout
        self._token = token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._busy: set[http.client.HTTPConnection] = set()
        weakref.finalize(self, _close, self._idle)

    def describe(self) -> Description:
        """Ask what the server's reward is. Raises `_NoAnswerError` and `RewardError`."""
        body = self._exchange("GET", [], {"Accept": "application/json"}, 2**20)
        try:
            said = json.loads(body)
            version, revision = said["protocol"], said["revision"]
            description = Description(revision, said["set_level"], said["max_bytes"])
            kinds = (type(revision), type(description.set_level), type(description.max_bytes))
            if kinds != (str, bool, int) or description.max_bytes < 1:
                raise ValueError("a value of another type")
            if not revision.isprintable() or len(revision) > _LONGEST_REVISION:
                raise ValueError("a revision that is not a short line")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RewardError(
                f"reward server {self.url} does not describe itself as one ({type(error).__name__}: "
                f"{self.quote(str(error))}); name the address of an `rlcm serve-reward`"
            ) from None
        if version != VERSION:
            raise RewardError(
                f"reward server {self.url} speaks version {self.quote(repr(version))} of the protocol, not {VERSION}; "
                "install the same version of rlcm on both sides"
            )
        return description

    def post(self, body: Sequence[bytes | memoryview]) -> bytes:
        """Send the parts of a request and give the answer's bytes. Raises `_NoAnswerError` and `RewardError`."""
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Accept": MEDIA_TYPE,
            "Content-Length": str(sum(len(part) for part in body)),
        }
        return self._exchange("POST", body, headers, _ANSWER_BYTES + len(body[0]))

    def hang_up(self) -> None:
        """Break off the requests that are under way in other threads."""
        for connection in list(self._busy):
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(2)

    def _exchange(
        self, method: str, body: Sequence[bytes | memoryview], headers: Mapping[str, str], most_bytes: int
    ) -> bytes:
        status, location, data = self._transfer(method, body, {**headers, **self._headers}, most_bytes)
        if status == 200 and len(data) > most_bytes:
            raise self.malformed("it does not end")
        if status == 200:
            return data
        if status in _AWAY:
            raise _NoAnswerError(f"status {status}")
        if 300 <= status < 400:
            raise RewardError(
                f"reward server {self.url} redirects to {self.quote(location or 'nowhere')}, which is not followed; "
                "name that address itself if you trust it"
            )
        said = f": {self.quote(detail, 500)}" if (detail := _detail(data)) else ""
        advice = f"; {_REFUSALS.get(status, _MEND_SERVER)}" if status != 422 else ""
        raise RewardError(f"reward server {self.url} refused the request (status {status}){said}{advice}")

    def _transfer(
        self, method: str, body: Sequence[bytes | memoryview], headers: Mapping[str, str], most_bytes: int
    ) -> tuple[int, str | None, bytes]:
        reused = False
        try:
            with Deadline(self._timeout) as deadline:
                try:
                    connection, reused = self._open(deadline)
                    answer = self._send(connection, method, body, headers, most_bytes)
                except (OSError, http.client.HTTPException, ValueError):
                    if deadline.expired:  # it is we who broke it off
                        raise TimeoutError from None
                    raise
                if deadline.expired:  # an answer without a length ends where we broke it off
                    raise TimeoutError
                return answer
        except TimeoutError:
            raise _NoAnswerError(f"nothing within {self._timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise RewardError(f"reward server {self.url}: its certificate is not trusted ({error.reason})") from None
        except (ConnectionError, http.client.IncompleteRead) as error:
            refused = isinstance(error, ConnectionRefusedError)
            raise _NoAnswerError("connection refused" if refused else "connection lost", stale=reused) from None
        except OSError as error:
            raise _NoAnswerError(error.strerror or self.quote(str(error))) from None
        except (http.client.HTTPException, ValueError) as error:
            raise self.malformed(f"no HTTP ({type(error).__name__})") from None

    def _open(self, deadline: Deadline) -> tuple[http.client.HTTPConnection, bool]:
        """Take a kept connection, or make one; tell which."""
        with contextlib.suppress(IndexError):
            kept = self._idle.pop()
            deadline.watch(kept.sock)
            return kept, True
        connection = (
            http.client.HTTPConnection(self._host, self._port)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, context=self._tls)
        )
        address = (self._host, connection.port)
        plain = socket.create_connection(address, timeout=min(CONNECT_SECONDS, self._timeout))
        try:
            deadline.watch(plain)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock = plain if self._tls is None else self._tls.wrap_socket(plain, server_hostname=self._host)
            connection.sock.settimeout(self._timeout)
        except BaseException:
            plain.close()
            raise
        return connection, False

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        body: Sequence[bytes | memoryview],
        headers: Mapping[str, str],
        most_bytes: int,
    ) -> tuple[int, str | None, bytes]:
        self._busy.add(connection)
        finished = False
        try:
            connection.request(method, self._path, body=body or None, headers=headers)
            response = connection.getresponse()
            data = _read(response, most_bytes)
            finished = response.isclosed() and not response.will_close
            return response.status, response.headers.get("Location"), data
        finally:
            self._busy.discard(connection)
            if finished:
                self._idle.append(connection)
            else:
                connection.close()

    def quote(self, text: str, longest: int = LONGEST) -> str:
        """Return what the server says as a short line without our token."""
        return quote_foreign(text, secret=self._token, longest=longest)

    def malformed(self, fault: str) -> RewardError:
        """Make the error for an answer that does not follow the protocol."""
        return RewardError(f"reward server {self.url} gave a malformed answer: {self.quote(fault)}; {_MEND_SERVER}")


def _checked(server: _Server, rewards: np.ndarray[Any, Any], batch: Batch) -> np.ndarray[Any, Any]:
    import numpy as np

    if len(rewards) != len(batch):
        raise RewardError(
            f"reward server {server.url} gave {len(rewards)} rewards for {len(batch)} images; {_MEND_SERVER}"
        )
    broken = np.flatnonzero(~np.isfinite(rewards))
    if len(broken):
        first = int(broken[0])
        raise RewardError(
            f"reward server {server.url} gave {rewards[first]} for {len(broken)} of {len(batch)} images, the first "
            f"with prompt {batch.prompts[first]!r}, metadata {dict(batch.metadata[first])}; {_MEND_SERVER}"
        )
    return rewards


def _plain(metadata: Metadata) -> list[dict[str, object]]:
    return [dict(known) for known in metadata]


def _close(connections: deque[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _read(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    """Read an answer; more than `most_bytes` only where it has more."""
    declared = response.length
    data = response.read(most_bytes + 1)
    if declared is not None and len(data) < min(declared, most_bytes + 1):
        raise http.client.IncompleteRead(data, declared - len(data))
    return data


def _detail(data: bytes) -> str:
    """Give the one line that a server says of a refusal."""
    try:
        said = json.loads(data)["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = ""
    return said.strip() if isinstance(said, str) else ""


def _read_token() -> str | None:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(f"{TOKEN_VARIABLE} holds what no token has (spaces, or letters outside ASCII); mend it")
    return token or None
