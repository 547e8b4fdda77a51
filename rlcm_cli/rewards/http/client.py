"""One request to one server: a deadline for the whole exchange, a bounded answer, and faults in words."""

from __future__ import annotations

import contextlib
import ssl
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.http.connection import Connection
from rlcm_cli.rewards.http.deadline import Deadline
from rlcm_cli.rewards.http.quoting import LONGEST, quote_foreign

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 60.0
"""How long a connection without requests is kept: routers on the way forget older ones without a word."""

_PIECE = 2**20
"""Bytes of a body that are handed to the library together: it copies them, and fresh memory for a whole body costs a
page fault every 4 KiB."""
_TLS_INSTEAD = "no HTTP but TLS (is it https://?)"
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""OpenSSL's reasons, by version, for a first record that is none."""


class NoReplyError(Exception):
    """A server that is away, overloaded or too slow; the message is the reason. Worth trying again.

    `pause`: seconds that the server asks us to wait.
    """

    def __init__(self, reason: str, *, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Reply:
    """What a server answered; a body with a status other than 200 may be cut off."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Asks one address. Connections are kept and used again; redirects are not followed.

    Args:
        url: The address.
        name: What messages call the server.
        timeout: Seconds that an exchange may take as a whole; connecting has `CONNECT_SECONDS` of them.
        advice: What to do about an answer that does not follow the protocol.
        headers: Sent with every request.
        secret: Never shown, not even where the server repeats it.
        proxied: Whether the proxies of the environment are used.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout: float,
        advice: str,
        headers: Mapping[str, str],
        secret: str,
        proxied: bool,
    ) -> None:
        self.url = url
        self.name = name
        self._timeout = timeout
        self._advice = advice
        self._secret = secret
        self._connect = _make_connector(timeout, headers, tls=url.startswith("https:"), proxied=proxied)
        self._idle: deque[Connection] = deque()
        self._under_way: set[Deadline] = set()
        self._answered = False
        weakref.finalize(self, _close, self._idle)

    def exchange(
        self, method: str, headers: Mapping[str, str], *, body: Sequence[bytes | memoryview] = (), most_bytes: int
    ) -> Reply:
        """Send a request and return the answer.

        Args:
            method: Of HTTP.
            headers: Of this request.
            body: Its parts, which are sent without being joined.
            most_bytes: Most bytes of an answer.

        Raises:
            NoReplyError: If there is no whole answer in time.
            RewardError: If the server's certificate is not trusted, or it does not speak HTTP or answers too much.
        """
        with Deadline(self._timeout) as deadline, self._lend_connection() as connection:
            self._under_way.add(deadline)
            try:
                reply = self._transfer(connection, deadline, method, headers, body, most_bytes)
            finally:
                self._under_way.discard(deadline)
            if deadline.expired:  # an answer without a length ends where we broke it off
                raise self._late()
        if reply.status == 200 and len(reply.body) > most_bytes:
            raise self.malformed(f"more than {most_bytes} bytes")
        return reply

    def hang_up(self) -> None:
        """Break off the requests that are under way in other threads."""
        for deadline in list(self._under_way):
            deadline.expire()

    def quote(self, text: str, longest: int = LONGEST) -> str:
        """Return what the server says as a short line without our secret."""
        return quote_foreign(text, secret=self._secret, longest=longest)

    def malformed(self, fault: str) -> RewardError:
        """Make the error for an answer that does not follow the protocol."""
        return RewardError(f"{self.name} gave a malformed answer: {self.quote(fault)}; {self._advice}")

    @contextlib.contextmanager
    def _lend_connection(self) -> Iterator[Connection]:
        """Return the connection that was used last, or a new one where all are in use, and keep it afterwards."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def _transfer(
        self,
        connection: Connection,
        deadline: Deadline,
        method: str,
        headers: Mapping[str, str],
        body: Sequence[bytes | memoryview],
        most_bytes: int,
    ) -> Reply:
        import httpx2

        length = {"Content-Length": str(sum(len(part) for part in body))} if body else {}
        while True:
            try:
                with connection.http.stream(
                    method,
                    self.url,
                    content=_cut(body) if body else None,
                    headers={**headers, **length},
                    extensions={"trace": connection.begin(deadline)},
                ) as response:
                    self._answered = True
                    return Reply(response.status_code, response.headers, _read(response, most_bytes))
            except httpx2.RequestError as error:
                if deadline.expired:  # it is we who broke it off
                    raise self._late() from None
                fault = self._explain(error, connection, deadline)
                if connection.reused and isinstance(fault, NoReplyError):
                    continue  # the server may have closed it meanwhile; the next one is new
                raise fault from error

    def _late(self) -> NoReplyError:
        return NoReplyError(f"no whole answer within {self._timeout:g} s")

    def _explain(
        self, error: httpx2.RequestError, connection: Connection, deadline: Deadline
    ) -> NoReplyError | RewardError:
        """Return what a failed exchange means."""
        import httpx2

        if connection.tls:
            return self.malformed(_TLS_INSTEAD)
        if connection.foreign:
            return self.malformed(f"no HTTP ({connection.heard.splitlines()[0].decode(errors='replace')})")
        if isinstance(error, httpx2.TimeoutException):
            return self._late()
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                reason = self.quote(cause.verify_message)
                return RewardError(f"{self.name}: its certificate is not trusted ({reason})")
            if isinstance(cause, ConnectionRefusedError):
                return NoReplyError("connection refused")
            if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
                return self.malformed("no TLS (is it http://?)")
            if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
                return NoReplyError(cause.strerror or self.quote(str(cause)))
        text = str(error)
        if isinstance(error, httpx2.NetworkError) or "closed connection" in text or "disconnected" in text:
            if not self._answered and connection.probe_tls(deadline):
                return self.malformed(_TLS_INSTEAD)
            return NoReplyError("connection lost")
        return self.malformed(f"no HTTP ({text})")


def _make_connector(
    timeout: float, headers: Mapping[str, str], *, tls: bool, proxied: bool
) -> Callable[[], Connection]:
    """Return what makes connections, which share the certificates that it reads."""
    import httpx2

    verify = httpx2.create_ssl_context(trust_env=proxied) if tls else False

    def connect() -> Connection:
        client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            headers={"Accept-Encoding": "identity", **headers},
            limits=httpx2.Limits(max_connections=1, keepalive_expiry=IDLE_SECONDS),
            trust_env=proxied,
            verify=verify,
        )
        return Connection(client)

    return connect


def _close(idle: deque[Connection]) -> None:
    while idle:
        idle.pop().http.close()


def _read(response: httpx2.Response, most_bytes: int) -> bytes:
    """Read an answer; one that has more than `most_bytes` is cut off somewhere behind them."""
    answer = bytearray()
    for part in response.iter_bytes():
        answer += part
        if len(answer) > most_bytes:
            break
    return bytes(answer)


def _cut(body: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    for part in body:
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            yield cast("bytes", view[start : start + _PIECE])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
