"""One request to one server: a deadline for the whole exchange, a bounded answer, and faults in words."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.http.deadline import Deadline
from rlcm_cli.rewards.http.quoting import LONGEST, quote_foreign

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10.0

_PIECE = 2**20
"""Bytes of a body that are handed to the library together: it copies them, and fresh memory for a whole body costs a
page fault every 4 KiB."""


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
    """Asks one address. Redirects are not followed.

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
        import httpx2

        self.url = url
        self.name = name
        self._timeout = timeout
        self._advice = advice
        self._secret = secret
        # A connection for each request, so that its deadline knows which one to break off; to open it takes little
        # time next to that of an answer.
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            headers={"Accept-Encoding": "identity", **headers},
            limits=httpx2.Limits(max_keepalive_connections=0),
            trust_env=proxied,
            verify=url.startswith("https:"),
        )
        self._under_way: set[Deadline] = set()

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
        import httpx2

        with Deadline(self._timeout) as deadline:
            self._under_way.add(deadline)
            try:
                reply = self._transfer(method, headers, body, most_bytes, deadline)
            except httpx2.RequestError as error:
                if deadline.expired:  # it is we who broke it off
                    raise self._late() from None
                raise self._explain(error) from error
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

    def _transfer(
        self,
        method: str,
        headers: Mapping[str, str],
        body: Sequence[bytes | memoryview],
        most_bytes: int,
        deadline: Deadline,
    ) -> Reply:
        def watch(event: str, known: Mapping[str, Any]) -> None:
            if event.endswith("connect_tcp.complete"):
                deadline.watch(known["return_value"].get_extra_info("socket"))

        length = {"Content-Length": str(sum(len(part) for part in body))} if body else {}
        answer = bytearray()
        with self._http.stream(
            method,
            self.url,
            content=_cut(body) if body else None,
            headers={**headers, **length},
            extensions={"trace": watch},
        ) as response:
            for part in response.iter_bytes():
                answer += part
                if len(answer) > most_bytes:
                    break
        return Reply(response.status_code, response.headers, bytes(answer))

    def _late(self) -> NoReplyError:
        return NoReplyError(f"no whole answer within {self._timeout:g} s")

    def _explain(self, error: httpx2.RequestError) -> NoReplyError | RewardError:
        """Return what a failed exchange means."""
        import httpx2

        if isinstance(error, httpx2.TimeoutException):
            return self._late()
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                reason = self.quote(cause.verify_message)
                return RewardError(f"{self.name}: its certificate is not trusted ({reason})")
            if isinstance(cause, ConnectionRefusedError):
                return NoReplyError("connection refused")
            if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
                return NoReplyError(cause.strerror or self.quote(str(cause)))
        text = str(error)
        if isinstance(error, httpx2.NetworkError) or "closed connection" in text or "disconnected" in text:
            return NoReplyError("connection lost")
        return self.malformed(f"no HTTP ({text})")


def _cut(body: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    for part in body:
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            yield cast("bytes", view[start : start + _PIECE])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
