"""A hub on this machine: as much of its HTTP interface as an upload takes."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_test"  # noqa: S105


@dataclass
class FakeHub:
    """What it holds, and what it was asked."""

    address: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → `private`, and `files`, each with its bytes."""
    refuses: bool = False
    """Every token."""

    def add(self, name: str, *, private: bool = True, files: dict[str, bytes] | None = None) -> None:
        self.repositories[name] = {"private": private, "files": files or {}}

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/api/whoami-v2":
            return 200, {"name": "ann", "type": "user", "orgs": []}
        name = path.removeprefix("/api/models/").partition("/revision/")[0]
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        found = self.repositories[name]
        siblings = [{"rfilename": file} for file in found["files"]]
        return 200, {"id": name, "private": found["private"], "sha": "0" * 40, "tags": [], "siblings": siblings}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            name = name if "/" in name else f"ann/{name}"
            if name not in self.repositories:
                self.add(name, private=asked.get("private") or asked.get("visibility") == "private")
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":  # of the card
            return 200, {"errors": [], "warnings": []}
        name, _, rest = path.removeprefix("/api/models/").partition("/preupload/")
        if rest:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        name, _, rest = path.removeprefix("/api/models/").partition("/commit/")
        if rest:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.repositories[name]["files"][value["path"]] = base64.b64decode(value["content"])
            return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
        return 404, {"error": f"not in this hub: {path}"}


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Serve a hub while the block lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*hub.get(self.path.partition("?")[0]))

        def do_HEAD(self) -> None:
            self._answer(200, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(*hub.post(self.path.partition("?")[0], body))

        def _answer(self, status: int, value: Any) -> None:
            if hub.refuses or self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None):
                status, value = 401, {"error": "Invalid credentials"}
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
