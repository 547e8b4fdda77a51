"""A reward server of one file, for a model whose packages do not fit beside rlcm's: the standard library and numpy.

It speaks the protocol of `rlcm serve-reward`, which `rlcm_cli/rewards/remote/protocol.py` specifies: `GET /NAME`
describes the reward, `POST /NAME` takes safetensors and returns safetensors. Python 3.10 is enough.
"""

from __future__ import annotations

import hmac
import json
import os
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np

TOKEN_VARIABLE = "RLCM_REWARD_TOKEN"  # noqa: S105
MEDIA_TYPE = "application/x-safetensors"
MOST_BYTES = 64 * 2**20
LOCAL = ("127.0.0.1", "localhost", "::1")

ScoreFn = Callable[[np.ndarray, Sequence[str]], Sequence[float]]
"""From images uint8 [B, 3, H, W], RGB, and B prompts to B finite numbers; raises ValueError where it has none."""


class Served(NamedTuple):
    """A reward that is served.

    Attributes:
        name: Last part of its address.
        score: Scores a batch; never called by two threads at a time.
        revision: One short line that changes whenever the same images would get other numbers.
        description: What it measures, in one line.
        value_range: Range and unit of its values, in words.
    """

    name: str
    score: ScoreFn
    revision: str
    description: str
    value_range: str


class RefusalError(Exception):
    """Why a request is not answered."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def make_server(served: Served, host: str, port: int) -> ThreadingHTTPServer:
    """Make a server of one reward; `serve_forever` starts it.

    Raises:
        SystemExit: If it would be open to other machines without a token.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if host not in LOCAL and not token:
        raise SystemExit(
            f"{host} is open to other machines: put a token into the environment variable {TOKEN_VARIABLE}"
        )
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            if self.path == "/health":
                self._send(200, "application/json", _json({"status": "ok", "rewards": [served.name]}))
            else:
                self._answer(lambda: ("application/json", _json(_describe(served))))

        def do_POST(self) -> None:
            self._answer(lambda: (MEDIA_TYPE, self._score()))

        def _answer(self, work: Callable[[], tuple[str, bytes]]) -> None:
            try:
                self._check()
                kind, body = work()
                self._send(200, kind, body)
            except RefusalError as refusal:
                self.close_connection = True  # what is left of its body is not read
                self._send(refusal.status, "application/json", _json({"detail": str(refusal)}))

        def _check(self) -> None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and not hmac.compare_digest(given.encode(), token.encode()):
                raise RefusalError(401, "this server wants its bearer token, and this is not it")
            if self.path != f"/{served.name}":
                raise RefusalError(404, f"this server has {served.name} only")

        def _score(self) -> bytes:
            length = self.headers.get("Content-Length", "")
            if self.headers.get("Content-Type") != MEDIA_TYPE or not length.isdigit():
                raise RefusalError(415, f"send {MEDIA_TYPE} with its length")
            if int(length) > MOST_BYTES:
                raise RefusalError(413, f"{length} bytes are more than the {MOST_BYTES} that this server takes")
            images, prompts = read_request(self.rfile.read(int(length)))
            try:
                with lock:
                    rewards = np.asarray(served.score(images, prompts), "<f4")
            except ValueError as error:
                raise RefusalError(422, " ".join(str(error).split())) from error
            return write_answer(served, rewards)

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Print nothing of a request."""

    return ThreadingHTTPServer((host, port), Handler)


def read_request(body: bytes) -> tuple[np.ndarray, list[str]]:
    """Return the images and the prompts of a request. Raises `RefusalError`."""
    try:
        length = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + length])
        record = json.loads(header["__metadata__"]["rlcm"])
        kind, shape = header["images"]["dtype"], header["images"]["shape"]
        images = np.frombuffer(body, np.uint8, offset=8 + length).reshape(shape)
        prompts = record["prompts"]
        if kind != "U8" or images.ndim != 4 or images.shape[1] != 3 or len(prompts) != len(images):
            raise ValueError("not images [B, 3, H, W] with B prompts")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusalError(400, f"the body is not a request ({type(error).__name__})") from error
    return images, prompts


def write_answer(served: Served, rewards: np.ndarray) -> bytes:
    """Return the bytes of an answer with B rewards, float32."""
    record = {"count": len(rewards), "reward": served.name, "revision": served.revision}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    entry = {"dtype": "F32", "shape": [len(rewards)], "data_offsets": [0, rewards.nbytes]}
    header = json.dumps({"__metadata__": {"rlcm": text}, "rewards": entry}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + rewards.tobytes()


def _describe(served: Served) -> dict[str, Any]:
    return {
        "name": served.name,
        "description": served.description,
        "range": served.value_range,
        "version": 1,
        "settings": {},
        "set_level": False,
        "revision": served.revision,
        "max_bytes": MOST_BYTES,
        "protocol": 1,
    }


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def run(served: Served, host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    server = make_server(served, host, port)
    print(
        f"http://{host}:{server.server_port}/{served.name}: {served.description} (revision {served.revision})",
        flush=True,
    )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
