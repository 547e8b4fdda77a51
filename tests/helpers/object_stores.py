"""Object stores of tests: a real S3 server on loopback, and ways to damage what it holds."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def serve_s3(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run a server that s3fs finds by its environment; give the file system."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the address that it was made with
        yield s3fs.S3FileSystem()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """The file system of a server that all tests share."""
    with pytest.MonkeyPatch.context() as patch, serve_s3(patch) as files:
        yield files


@pytest.fixture
def remote(s3: Any) -> str:
    """URL of a run that is not there yet, in a bucket of its own."""
    bucket = f"tests-{uuid.uuid4().hex[:12]}"
    s3.mkdir(bucket)
    return f"s3://{bucket}/experiments/run"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that makes this process one of another machine: with a stage of its own."""

    def move_to(name: str) -> Path:
        stage = tmp_path / f"stage-of-{name}"
        monkeypatch.setenv("RLCM_STAGE", str(stage))
        return stage

    move_to("one")
    return move_to


def download(files: Any, url: str, folder: Path) -> Path:
    """Copy all objects of a run into a folder."""
    root = url.removeprefix("s3://")
    for key in files.find(root):
        target = folder / key.removeprefix(root + "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files.cat_file(key))
    return folder


def cut(files: Any, key: str) -> None:
    """Cut an object in half, as an upload does that a server took for whole."""
    content = files.cat_file(key)
    files.pipe_file(key, content[: len(content) // 2])
