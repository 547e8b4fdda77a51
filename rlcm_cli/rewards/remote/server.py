"""The process of a reward server: its token, its socket, and its end."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket

import uvicorn
from fastapi import FastAPI

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.remote.receiving import ReceivingProtocol

KEEP_ALIVE_SECONDS = 75


def read_token(host: str, variable: str, *, named: bool) -> str | None:
    """Read the token that clients must send.

    Args:
        host: Address that the server binds.
        variable: Name of the environment variable.
        named: The variable was asked for, so that it must be set.

    Raises:
        ConfigError: If there is none and one is needed, because other machines can reach the server; if it holds
            what an HTTP header cannot.
    """
    token = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(f"{variable} holds what no token has (spaces, or letters outside ASCII); fix it")
    if not token and (named or not is_loopback(host)):
        reason = f"--token-env {variable}" if named else f"--host {host} lets other machines in"
        raise ConfigError(
            f"{reason}, and the environment variable {variable} is not set; choose a token that the clients set too: "
            f'export {variable}="$(openssl rand -hex 16)"'
        )
    return token or None


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket. Raises `ConfigError` where the system refuses it."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port} cannot be listened on ({reason}); choose others") from None


def reachable(host: str) -> str:
    """Return the host as clients write it; `host`: what the server is bound to."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def serve(app: FastAPI, sock: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT; those under way are finished first, a second SIGINT breaks them off."""
    # glibc gives memory back to the system at once when more of it is free than the largest block that was ever
    # freed, and what is asked for again costs a page fault every 4 KiB. This block makes it keep some.
    bytes(16 * 2**20)
    # uvicorn raises the signal that ended it once more, for the handlers that were there before.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(configure(app)).run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def configure(app: FastAPI) -> uvicorn.Config:
    """Return uvicorn's configuration for the application."""
    return uvicorn.Config(
        app,
        # With bodies of megabytes asyncio's own loop is 1.7 times as fast as uvloop, which reads in smaller pieces.
        loop="asyncio",
        http=ReceivingProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
