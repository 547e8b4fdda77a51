"""One deadline for a whole exchange over a socket, whatever the other side sends and however slowly.

The timeout of a socket is one between two parts: a server that sends a byte a second, one header line after another
or "100 Continue" without end never meets it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Deadline:
    """Breaks connections off when the time is over; a context manager.

    Whoever reads from a watched socket then meets its end; `expired` says why.

    Args:
        seconds: From entering the context.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self.expire)
        self._timer.daemon = True

    def watch(self, connection: socket.socket) -> None:
        """Break this connection off too, at once where the time is over."""
        # A duplicate: TLS takes the socket itself away from whoever opened it.
        with contextlib.suppress(OSError):
            duplicate = socket.fromfd(connection.fileno(), connection.family, connection.type)
            with self._lock:
                self._sockets.append(duplicate)
            if self.expired:
                self.expire()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for duplicate in self._sockets:
                duplicate.close()
            self._sockets.clear()

    def expire(self) -> None:
        """Break the connections off now."""
        self.expired = True
        with self._lock:
            for duplicate in self._sockets:
                with contextlib.suppress(OSError):
                    duplicate.shutdown(socket.SHUT_RDWR)
