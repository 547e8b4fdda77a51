"""Servers that are asked in turn, with patience for those that are away."""

from __future__ import annotations

import itertools
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.http.client import HttpClient, NoReplyError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0

_log = logging.getLogger("rlcm.rewards")
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Server:
    """A server of the pool, and whether it is away."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self.lock = threading.Lock()
        self.failures = 0
        self.retry_at = 0.0


class ServerPool:
    """Servers that give the same answers; one that is down is left out until it is tried again.

    Args:
        clients: The servers.
        patience: Seconds, from its first failure, that a request is tried again for while no server answers.
        advice: What to do about servers that do not answer.
    """

    def __init__(self, clients: Sequence[HttpClient], *, patience: float, advice: str) -> None:
        self._servers = [_Server(client) for client in clients]
        self._turn = itertools.count()
        self._patience = patience
        self._advice = advice

    def map(
        self, ask: Callable[[Item, threading.Event], Result], items: Sequence[Item], *, concurrency: int
    ) -> list[Result]:
        """Ask for each item, `concurrency` at once; results in the order of the items.

        The first error ends the others' waiting and is raised.

        Args:
            ask: From an item and what `ask` of the pool takes as `stop`.
            items: What is asked for.
            concurrency: Requests under way at once.
        """
        stop = threading.Event()
        if len(items) < 2:
            return [ask(item, stop) for item in items]
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="rlcm-remote")
        futures = [pool.submit(ask, item, stop) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # After an error, or Ctrl-C, nobody wants the rest: do not sit out the patience of the other requests.
            stop.set()
            for future in futures:
                future.cancel()
            for server in self._servers:
                server.client.hang_up()
            raise
        finally:
            pool.shutdown()
        return [future.result() for future in futures]

    def ask(self, ask: Callable[[HttpClient], Result], stop: threading.Event) -> tuple[HttpClient, Result]:
        """Ask one server after the other until one answers or the patience is over; return it with the answer.

        Pauses double from `FIRST_PAUSE` to `LONGEST_PAUSE` seconds, or are longer where the server says so.

        Args:
            ask: Sends the request; raises `NoReplyError` where it is worth trying again.
            stop: Ends the waiting when it is set.

        Raises:
            RewardError: If no server answers in time, or `stop` is set; or whatever `ask` raises.
        """
        deadline = math.inf
        while True:
            server = self._choose()
            pause = server.retry_at - time.monotonic()
            if pause > 0 and stop.wait(pause):
                raise _given_up(server)
            try:
                result = ask(server.client)
            except NoReplyError as error:
                if stop.is_set():
                    raise _given_up(server) from None
                now = time.monotonic()
                deadline = min(deadline, now + self._patience)
                if (now >= deadline or now + error.pause > deadline) and not self._others_up(server):
                    raise RewardError(self._describe_loss(error)) from None
                self._note_failure(server, error, deadline - now)
            else:
                server.failures = 0
                return server.client, result

    def note_absence(self, client: HttpClient, error: NoReplyError) -> None:
        """Leave a server out for a while that has not answered a question outside the pool."""
        (server,) = (server for server in self._servers if server.client is client)
        self._note_failure(server, error, self._patience)

    def _choose(self) -> _Server:
        """Return the next server in turn that is up, else the one that is to be tried first."""
        start, now = next(self._turn), time.monotonic()
        in_turn = [self._servers[(start + offset) % len(self._servers)] for offset in range(len(self._servers))]
        up = (server for server in in_turn if server.retry_at <= now)
        return next(up, None) or min(in_turn, key=lambda server: server.retry_at)

    def _others_up(self, server: _Server) -> int:
        return sum(other is not server and not other.failures for other in self._servers)

    def _note_failure(self, server: _Server, error: NoReplyError, left: float) -> None:
        """Leave a server out for a while, and say so; `left`: seconds until the request's patience is over."""
        with server.lock:
            now = time.monotonic()
            if server.retry_at > now:
                return  # another request has met the same failure, and said so
            server.failures += 1
            longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(server.failures - 1, 10))
            # Jitter, so that the clients of a server that returns do not come all at once.
            pause = max(random.uniform(0.5, 1) * longest, error.pause)  # noqa: S311
            others = self._others_up(server)
            if not others:
                pause = min(pause, left)
            server.retry_at = now + pause
        _log.warning(
            "%s does not answer (%s); trying again in %.1f s, %s",
            server.client.name,
            error,
            pause,
            f"with {others} other{'s' if others > 1 else ''} meanwhile" if others else f"for {left:.0f} s more",
        )

    def _describe_loss(self, error: NoReplyError) -> str:
        names = " and ".join(server.client.name for server in self._servers)
        return (
            f"{names} did not answer for {self._patience:g} s ({error}); {self._advice}, then run the same command "
            "again: it resumes where it was"
        )


def _given_up(server: _Server) -> RewardError:
    return RewardError(f"{server.client.name} is not asked again: another request failed")


def read_retry_after(value: str) -> float:
    """Read a Retry-After header (RFC 9110, section 10.2.3), seconds or a date, as seconds from now."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date - datetime.now(UTC)).total_seconds()) if date.tzinfo else 0.0
