"""How the server takes in requests of many megabytes: from the socket straight into memory that is used again.

uvicorn copies a body four times on its way to the application, as costly as half an encoding of its images as JPEG.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable

import httptools
from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

BUFFERS_KEPT = 8

_EXTENSION = "rlcm.body"
"""Of ASGI: `await_first_bytes` is a coroutine function that returns once some of the body is there; `receive_into` one
that fills a memoryview, which is as long as the body, and reports how many bytes are there after each part."""

Progress = Callable[[int], None]
"""Gets the number of bytes of a body that have come so far."""


class Buffers:
    """Memory of answered requests, used again: to fill fresh memory takes longer, by a page fault every 4 KiB."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of `size` bytes or somewhat more."""
        for index, buffer in enumerate(self._free):
            if size <= len(buffer) <= 2 * size and _is_unused(buffer):
                return self._free.pop(index)
        return bytearray(size + size // 16)

    def give_back(self, buffer: bytearray) -> None:
        """Take a buffer back."""
        self._free = [*self._free, buffer][-BUFFERS_KEPT:]


def _is_unused(buffer: bytearray) -> bool:
    """Return whether nothing looks into a buffer any more, such as the images that a reward has kept."""
    try:
        buffer.append(0)  # a buffer that is looked into cannot change its size
    except BufferError:
        return False
    buffer.pop()
    return True


async def await_first_bytes(request: Request) -> None:
    """Wait until some of a request's body, or its end, has come."""
    await request.scope["extensions"][_EXTENSION]["await_first_bytes"]()


async def read_body(request: Request, most_bytes: int, buffers: Buffers, progress: Progress) -> tuple[bytearray, int]:
    """Read a request into a buffer; return it with the number of bytes in it.

    Raises `HTTPException` for more than `most_bytes`, `ClientDisconnect` where the client leaves before the end.
    """
    too_large = HTTPException(413, f"the request is larger than the {most_bytes} bytes that this server takes")
    declared = request.headers.get("content-length")
    if declared is None:
        grown = bytearray()
        async for chunk in request.stream():
            if len(grown) + len(chunk) > most_bytes:
                raise too_large
            grown += chunk
            progress(len(grown))
        return grown, len(grown)
    size = int(declared)  # the HTTP parser has seen to it that this is a number, and that no more bytes come
    if size > most_bytes:
        raise too_large
    buffer = buffers.take(size)
    with memoryview(buffer) as whole, whole[:size] as body:
        await request.scope["extensions"][_EXTENSION]["receive_into"](body, progress)
    return buffer, size


class ReceivingProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's protocol, whose bodies can be read into memory of the application's choice.

    The parser sees the header and what of the body came with it; the rest does not pass through it.
    """

    # One for all connections: what is in it is parsed, and copied, before another is read.
    _small = memoryview(bytearray(2**16))
    _rest: memoryview | None = None
    """What is still to be filled of the memory that the body under way goes to."""
    _filled: asyncio.Future[None]
    _progress: Callable[[], None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection."""
        # asyncio leaves this out for a socket that came without a protocol number, as ours does. A short answer, sent
        # after its header, would wait 40 ms for the client's delayed acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)

    def on_headers_complete(self) -> None:
        """Start the application on a request."""
        super().on_headers_complete()
        self.scope["extensions"] = {
            _EXTENSION: {
                "await_first_bytes": functools.partial(self._await_first_bytes, self.cycle),
                "receive_into": functools.partial(self._receive_into, self.cycle),
            }
        }

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._small if self._rest is None else self._rest

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that have come."""
        if self._rest is None:
            self.data_received(self._small[:nbytes])  # type: ignore[arg-type]
            return
        self._rest = self._rest[nbytes:]
        self._progress()
        if not self._rest:
            self._rest = None
            # The old one waits for a body that it will not see.
            self.parser = httptools.HttpRequestParser(self)
            self.on_message_complete()
            self._filled.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that the client has left."""
        super().connection_lost(exc)
        if self._rest is not None and not self._filled.done():
            self._filled.set_exception(ClientDisconnect())

    async def _await_first_bytes(self, cycle: RequestResponseCycle) -> None:
        self._admit(cycle)
        try:
            await cycle.message_event.wait()  # also set by the body's end and by the client's leaving
        except asyncio.CancelledError:
            cycle.keep_alive = False  # what comes next on this connection would be a body that nobody reads
            raise

    def _admit(self, cycle: RequestResponseCycle) -> None:
        """Answer a client that has asked whether it may send its body."""
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _receive_into(self, cycle: RequestResponseCycle, body: memoryview, progress: Progress) -> None:
        self._admit(cycle)
        parsed = len(cycle.body)
        body[:parsed] = cycle.body
        cycle.body = bytearray()
        if not cycle.more_body:
            return
        if cycle.disconnected:
            raise ClientDisconnect
        self._filled = self.loop.create_future()
        self._progress = lambda: progress(len(body) - len(self._rest or ()))
        self._rest = body[parsed:]
        self.flow.resume_reading()
        try:
            await self._filled
        except asyncio.CancelledError:
            # The parser has lost count of the body, so no other request can follow on this connection.
            cycle.keep_alive = False
            raise
        finally:
            self._rest = None
