"""Serving a session of voting until it is stopped."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from rlcm_cli.rewards.remote import server
from rlcm_cli.voting.app import build_app
from rlcm_cli.voting.session import Session

KEY_BYTES = 16


class VotingServer:
    """A page that is ready to be served.

    Attributes:
        address: What a browser opens; its last part is the key.
    """

    def __init__(self, session: Session, sock: socket.socket, host: str) -> None:
        key = secrets.token_urlsafe(KEY_BYTES)
        self.address = f"http://{server.reachable(host)}:{sock.getsockname()[1]}/#{key}"
        self._app, self._sock = build_app(session, key, host), sock

    def serve(self) -> None:
        """Answer requests until SIGTERM or SIGINT."""
        server.serve(self._app, self._sock)


@contextmanager
def open_server(session: Session, host: str, port: int) -> Iterator[VotingServer]:
    """Open the socket of a voting page. Raises `ConfigError` where the system refuses it."""
    with server.listen(host, port) as sock:
        yield VotingServer(session, sock, host)
