"""A judge behind an address: several requests at once, and again while it is away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.http.client import HttpClient, NoReplyError
from rlcm_cli.rewards.http.pool import ServerPool, read_retry_after
from rlcm_cli.rewards.judges import JudgeSettings

ANSWER_LIMIT = 4 * 1024**2
"""Most bytes that an answer may have: a batch of short texts has a few thousand."""

_PASSING_STATUSES = (408, 425, 429)
_EXCERPT = 200

Item = TypeVar("Item")
Result = TypeVar("Result")


class JudgeServer:
    """Posts to one address.

    The statuses 408, 425, 429 and 5xx are tried again as a server that is away, later where it says so (Retry-After).

    Args:
        url: Where to post.
        settings: `timeout`, `patience`, `concurrency` and `api_key_env` are read.
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
        self._settings = settings
        self._client = HttpClient(
            url,
            name=f"reward {reward!r}: the judge at {url}",
            timeout=settings.timeout,
            advice="check that endpoint and judge belong together",
            headers=headers or {},
            secret=secret,
            proxied=True,
        )
        self._pool = ServerPool([self._client], patience=settings.patience, advice="check that it is running")
        self.quote = self._client.quote
        self.malformed = self._client.malformed

    def map(
        self,
        make: Callable[[Item], bytes],
        items: Sequence[Item],
        content_type: str,
        read: Callable[[Item, bytes], Result],
    ) -> list[Result]:
        """Post once for each item, `concurrency` at once; results in the order of the items.

        Args:
            make: From an item to the body of its request.
            items: What is asked for.
            content_type: Of the bodies.
            read: From an item and the body of its answer to the result.

        Raises:
            RewardError: If the patience is spent, or the judge refuses or answers too much; the first one is raised.
        """

        def ask(item: Item, stop: threading.Event) -> Result:
            body = make(item)
            _, answer = self._pool.ask(lambda client: self._post(body, content_type), stop)
            return read(item, answer)

        return self._pool.map(ask, items, concurrency=self._settings.concurrency)

    def _post(self, body: bytes, content_type: str) -> bytes:
        reply = self._client.exchange("POST", {"Content-Type": content_type}, body=[body], most_bytes=ANSWER_LIMIT)
        if reply.status == 200:
            return reply.body
        said = f"status {reply.status}{self._excerpt(reply.body)}"
        if reply.status in _PASSING_STATUSES or reply.status >= 500:
            raise NoReplyError(said, pause=read_retry_after(reply.headers.get("Retry-After", "")))
        if reply.status in (401, 403):
            # A server may repeat part of the key in the body.
            raise RewardError(
                f"{self._client.name} refuses us (status {reply.status}); put its key into the environment variable "
                f"{self._settings.api_key_env} (setting api_key_env)"
            )
        raise RewardError(f"{self._client.name} answered with {said}; check endpoint and model")

    def _excerpt(self, answer: bytes) -> str:
        text = answer.decode(errors="replace").strip()
        if text.startswith("Traceback"):
            text = text.splitlines()[-1]
        return f": {said}" if (said := self.quote(text, _EXCERPT)) else ""
