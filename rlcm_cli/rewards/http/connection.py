"""A connection that is kept from one request to the next, and whose socket is known."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rlcm_cli.rewards.http.deadline import Deadline

if TYPE_CHECKING:
    import httpx2

_HEARD_BYTES = 100
_HTTP = b"HTTP/"
_TLS_ALERT, _TLS_HANDSHAKE = b"\x15\x03", b"\x16\x03"
_PROBE_SECONDS = 2.0


class Connection:
    """A client of the library with one connection at most, for one request at a time.

    The library tells the socket only as it opens it, so a pool of its own would not say which one a request is on.

    Attributes:
        http: The client.
        reused: Whether the request under way is on a connection that an earlier one has opened.
        heard: First bytes of its answer, as far as they have come in one piece; empty with TLS.
    """

    def __init__(self, http: httpx2.Client) -> None:
        self.http = http
        self.reused = False
        self.heard = b""
        self._socket: socket.socket | None = None
        self._peer: tuple[str, int] | None = None

    def begin(self, deadline: Deadline) -> Callable[[str, Mapping[str, Any]], None]:
        """Prepare for a request that the deadline is to break off; return what is its `trace` (see httpx2)."""
        self.heard = b""
        self.reused = self._socket is not None
        if self._socket is not None:
            deadline.watch(self._socket)

        def trace(event: str, known: Mapping[str, Any]) -> None:
            if event.endswith("connect_tcp.started"):
                self.reused = False
                self._socket = self._peer = None
            elif event.endswith(("connect_tcp.complete", "start_tls.complete")):
                opened = known["return_value"].get_extra_info("socket")
                self._socket = opened
                deadline.watch(opened)
                with contextlib.suppress(OSError):  # hung up already
                    self._peer = opened.getpeername()[:2]
            elif event.endswith("receive_response_headers.started"):
                self._listen()

        return trace

    @property
    def foreign(self) -> bool:
        """Whether what was heard cannot begin an answer of HTTP."""
        return self.heard[: len(_HTTP)] != _HTTP[: len(self.heard)]

    @property
    def tls(self) -> bool:
        """Whether what was heard begins an alert of TLS (RFC 8446, section 5.1)."""
        return self.heard.startswith(_TLS_ALERT)

    def probe_tls(self, deadline: Deadline) -> bool:
        """Greet the other side with TLS, on a connection of its own, and return whether it answers in kind.

        Most servers that expect TLS hang up on a request of HTTP without a word.
        """
        if self.heard or self._peer is None or isinstance(self._socket, ssl.SSLSocket):
            return False
        context, hello = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
        context.check_hostname = False
        with contextlib.suppress(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
        with contextlib.suppress(OSError), socket.create_connection(self._peer, timeout=_PROBE_SECONDS) as probe:
            deadline.watch(probe)
            probe.sendall(hello.read())
            return probe.recv(2) in (_TLS_HANDSHAKE, _TLS_ALERT)
        return False

    def _listen(self) -> None:
        """Look at the first bytes of an answer and leave them to the library.

        The library reads on until a blank line, for which others than HTTP may never be asked, and does not tell what
        it has read when they hang up.
        """
        if self._socket is None or isinstance(self._socket, ssl.SSLSocket):
            return
        with contextlib.suppress(OSError):  # the library meets it too
            self.heard = self._socket.recv(_HEARD_BYTES, socket.MSG_PEEK)
            if self.foreign and (self.tls or b"\n" in self.heard):
                self._socket.shutdown(socket.SHUT_RDWR)
