"""Reward servers on the loopback: ours, and one that says whatever a test wants."""

import contextlib
import http.client
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import torch
import uvicorn

from rlcm_cli.rewards import REWARDS, RewardEntry, RewardSpec
from rlcm_cli.rewards.remote.app import build_app
from rlcm_cli.rewards.remote.served import load_served
from rlcm_cli.rewards.remote.server import configure, listen

SAFETENSORS = "application/x-safetensors"


@contextlib.contextmanager
def serving(*specs, port=0, **options):
    """Serve rewards in a thread of this process, with the options of `build_app`; yields the root address."""
    app = build_app(load_served([RewardSpec(spec) if isinstance(spec, str) else spec for spec in specs]), **options)
    with listen("127.0.0.1", port) as sock:
        server = uvicorn.Server(configure(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def register(monkeypatch, name, function, **fields):
    """Make a function a reward of that name."""
    fields = {"description": "for tests", "value_range": "any", **fields}
    entry = RewardEntry(lambda **settings: function, **fields)
    monkeypatch.setitem(REWARDS, name, entry)


def ask(method, url, body=None, headers=None):
    """Send one request; gives status, headers and body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, parts.path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def images(count, size=16, seed=0):
    """Draw noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def rows(count):
    """Give prompts and metadata."""
    return [f"prompt {row}" for row in range(count)], [{"sample": row, "group": row // 2} for row in range(count)]


def free_port():
    """Find a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


DESCRIPTION = {"revision": "r1", "set_level": False, "max_bytes": 2**20, "protocol": 1}


@contextlib.contextmanager
def scripted(reply, *, port=0, description=DESCRIPTION):
    """Answer POSTs with what `reply(body, handler)` gives: (status, headers, body), or None: it has answered.

    A GET is answered with the description, or as a POST where that is None. Yields the address and the list of
    the requests' headers.
    """
    requests, connections = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            super().setup()
            connections.append(self.connection)

        def do_GET(self):
            answer = (200, {}, json.dumps(description).encode()) if description is not None else reply(b"", self)
            self.send(answer)

        def do_POST(self):
            requests.append(dict(self.headers))
            self.send(reply(self.rfile.read(int(self.headers["Content-Length"])), self))

        def send(self, answer):
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/odd", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
