"""Requests to a judge behind an address: several at once, and again while it is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.http.deadline import Deadline
from rlcm_cli.rewards.http.quoting import LONGEST, quote_foreign

if TYPE_CHECKING:
    import httpx2

    from rlcm_cli.rewards.judges import JudgeSettings

ANSWER_LIMIT = 4 * 1024**2
"""Most bytes that an answer may have: a batch of short texts has a few thousand."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_WARN_EVERY = 30.0
_PASSING_STATUSES = (408, 425, 429)
_EXCERPT = 200

_log = logging.getLogger("rlcm.rewards")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Trouble:
    """Why a request is worth another attempt, and how many seconds the server asks us to wait."""

    reason: str
    pause: float = 0.0


class JudgeClient:
    """Posts to one address; a context manager.

    Args:
        url: Where to post.
        settings: `timeout`, `patience` and `concurrency` are read.
        reward: Name of the reward, for messages.
        headers: Sent with every request.
        secret: Never shown, not even where the server repeats it.
    """

    def __init__(
        self,
        url: str,
        settings: JudgeSettings,
        *,
        reward: str,
        headers: Mapping[str, str] | None = None,
        secret: str = "",
    ) -> None:
        import httpx2

        self._url = url
        self._settings = settings
        self._name = f"reward {reward!r}: the judge at {url}"
        self._secret = secret
        # A new connection for each request, so that its deadline knows which one to break off; the time that this
        # takes is little beside that of an answer.
        self._http = httpx2.Client(
            timeout=settings.timeout, headers=headers, limits=httpx2.Limits(max_keepalive_connections=0)
        )
        self._stopped = threading.Event()
        self._warning = threading.Lock()
        self._warned_at = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def map(self, ask: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Ask for each item, `concurrency` at once; results in the order of the items. A client maps once.

        The first error ends the others' waiting and is raised.
        """
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="rlcm-judge")
        try:
            futures = [pool.submit(ask, item) for item in items]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            return [future.result() for future in futures]
        finally:
            self._stopped.set()
            # Those under way are waited for, at most their timeout: their connections are this client's to close.
            pool.shutdown(cancel_futures=True)

    def post(self, body: bytes, content_type: str) -> bytes:
        """Post until there is an answer, and return it.

        Failed connections, timeouts and the statuses 408, 425, 429 and 5xx are tried again after 1, 2, 4, …, 30
        seconds, or later where the server says so (Retry-After), for `patience` seconds after the first failure.

        Raises:
            RewardError: If the patience is spent, or the judge refuses or answers too much.
        """
        give_up, pauses = None, _pauses()
        while True:
            answer = self._attempt(body, content_type)
            if isinstance(answer, bytes):
                return answer
            now = time.monotonic()
            give_up = now + self._settings.patience if give_up is None else give_up
            pause = max(next(pauses), answer.pause)
            if now + pause > give_up:
                raise RewardError(
                    f"{self._name} gave no answer in {self._settings.patience:g} s of patience ({answer.reason}); "
                    "see whether it runs, then run the same command again"
                )
            self._warn(f"{self._name} does not answer ({answer.reason}); waiting, up to {give_up - now:.0f} s more")
            if self._stopped.wait(pause):
                raise RewardError(f"{self._name} is asked no more: another request failed")

    def malformed(self, fault: str) -> RewardError:
        """Make the error for an answer that does not have the protocol's form."""
        return RewardError(
            f"{self._name} gave a malformed answer ({self.quote(fault)}); see that endpoint and judge belong together"
        )

    def quote(self, text: str, longest: int = LONGEST) -> str:
        """Return what the judge says as a short line without our key."""
        return quote_foreign(text, secret=self._secret, longest=longest)

    def _attempt(self, body: bytes, content_type: str) -> bytes | _Trouble:
        import httpx2

        timeout = self._settings.timeout
        try:
            with Deadline(timeout) as deadline:
                try:
                    response, answer = self._exchange(body, content_type, deadline)
                except httpx2.RequestError as error:
                    if deadline.expired:  # it is we who broke it off
                        raise httpx2.ReadTimeout(f"not whole after {timeout:g} s") from error
                    raise
                if deadline.expired:  # an answer without a length ends where we broke it off
                    raise httpx2.ReadTimeout(f"not whole after {timeout:g} s")
        except httpx2.TransportError as error:
            return _Trouble(f"{type(error).__name__}: {self.quote(str(error))}")
        except httpx2.RequestError as error:
            raise self.malformed(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status == 200:
            return answer
        said = f"status {status}{self._excerpt(answer)}"
        if status in _PASSING_STATUSES or status >= 500:
            return _Trouble(said, _retry_after(response.headers.get("Retry-After", "")))
        if status in (401, 403):
            # A server may repeat part of the key in the body.
            raise RewardError(
                f"{self._name} refuses us (status {status}); put its key into the environment variable "
                f"{self._settings.api_key_env} (setting api_key_env)"
            )
        raise RewardError(f"{self._name} answered with {said}; check endpoint and model")

    def _exchange(self, body: bytes, content_type: str, deadline: Deadline) -> tuple[httpx2.Response, bytes]:
        def watch(event: str, known: Mapping[str, Any]) -> None:
            if event.endswith("connect_tcp.complete"):
                deadline.watch(known["return_value"].get_extra_info("socket"))

        answer = bytearray()
        with self._http.stream(
            "POST",
            self._url,
            content=body,
            headers={"Content-Type": content_type},
            extensions={"trace": watch},
        ) as response:
            for part in response.iter_bytes():
                answer += part
                if len(answer) > ANSWER_LIMIT:
                    raise self.malformed(f"more than {ANSWER_LIMIT} bytes")
        return response, bytes(answer)

    def _excerpt(self, answer: bytes) -> str:
        text = answer.decode(errors="replace").strip()
        if text.startswith("Traceback"):
            text = text.splitlines()[-1]
        return f": {said}" if (said := self.quote(text, _EXCERPT)) else ""

    def _warn(self, line: str) -> None:
        """Log a line, but no more than one in half a minute, however many requests wait."""
        with self._warning:
            if time.monotonic() - self._warned_at < _WARN_EVERY:
                return
            self._warned_at = time.monotonic()
        _log.warning("%s", line)


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)


def _retry_after(value: str) -> float:
    """Read a Retry-After header (RFC 9110, section 10.2.3), seconds or a date, as seconds from now."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date - datetime.now(UTC)).total_seconds()) if date.tzinfo else 0.0
