"""A hub on this machine: as much of its HTTP interface as uploads and downloads take."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from rlcm_cli.foreign import hub

TOKEN = "hf_of_a_test"  # noqa: S105


@dataclass
class FakeHub:
    """What it holds, and what it was asked."""

    address: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → `private`, `commit`, and `files`, each with its bytes."""
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Name → status and error code with which the hub refuses to speak of a repository."""
    asked: list[str] = field(default_factory=list)
    """Paths, in order."""
    refuses: bool = False
    """Every token."""

    def add(self, name: str, *, private: bool = True, files: dict[str, bytes] | None = None) -> None:
        self.repositories[name] = {"private": private, "files": files or {}, "commit": "0" * 40}

    def move(self, name: str, files: dict[str, bytes]) -> None:
        """Make another commit of a repository, beside which the earlier ones stay."""
        before = self.repositories[name]
        count = int(before["commit"], 16) + 1
        past = {**before.get("past", {}), before["commit"]: before["files"]}
        self.repositories[name] = {**before, "files": files, "commit": f"{count:040x}", "past": past}

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files that a revision of a repository stands for."""
        found = self.repositories.get(name)
        if found is None:
            return None
        if revision in ("", "main", found["commit"]):
            return found["commit"], found["files"]
        return (revision, found["past"][revision]) if revision in found.get("past", {}) else None

    def find_file(self, path: str) -> tuple[str, bytes] | None:
        """The commit and the bytes that `/NAME/resolve/REVISION/FILE` stands for."""
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self.at(name, revision)
        return (found[0], found[1][file]) if found and file in found[1] else None

    def get(self, path: str) -> tuple[int, Any]:
        for name, (status, code) in self.faults.items():
            if name in path:
                return status, {"error": code}
        path = path.replace("/api/datasets/", "/api/models/datasets/")  # whose names begin so here
        if path == "/api/whoami-v2":
            return 200, {"name": "ann", "type": "user", "orgs": []}
        name, _, revision = path.removeprefix("/api/models/").replace("/tree/", "/revision/").partition("/revision/")
        if name not in self.repositories:
            return 404, {"error": "RepoNotFound"}
        found = self.at(name, revision)
        if found is None:
            return 404, {"error": "RevisionNotFound"}
        commit, held = found
        if "/tree/" in path:
            sizes = {file: len(data) for file, data in held.items()}
            return 200, [{"type": "file", "path": f, "size": size, "oid": f"{hash(f):x}"} for f, size in sizes.items()]
        siblings = [{"rfilename": file, "size": len(data)} for file, data in held.items()]
        return 200, {
            "id": name,
            "private": self.repositories[name]["private"],
            "sha": commit,
            "tags": [],
            "siblings": siblings,
        }

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
        return 404, {"error": "RepoNotFound"}


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Serve a hub while the block lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            if "/resolve/" not in path:
                self._answer(*hub.get(path))
            elif found := hub.find_file(path):
                self._send(*found)
            else:
                self._answer(404, {"error": "EntryNotFound"})

        def do_HEAD(self) -> None:
            if self.path == "/":
                self._answer(200, {})
            else:
                self.do_GET()

        def _send(self, commit: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')  # noqa: S324
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(*hub.post(self.path.partition("?")[0], body))

        def _answer(self, status: int, value: Any) -> None:
            if hub.refuses or self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None):
                status, value = 401, {"error": "InvalidCredentials"}
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status >= 400:
                self.send_header("X-Error-Code", value["error"])
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


@contextmanager
def reached(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """Serve a hub, and let this process ask it, with an empty cache, while the block lasts."""
    with serving() as served, asking(monkeypatch, cache, served.address):
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


@contextmanager
def asking(monkeypatch: pytest.MonkeyPatch, cache: Path, address: str) -> Iterator[None]:
    """Let this process ask the hub of an address, with an empty cache, while the block lasts."""
    hub._ask_once.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield
    hub._ask_once.cache_clear()


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, as `FakeHub.add` takes them."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
