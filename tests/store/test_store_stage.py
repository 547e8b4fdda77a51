"""The stage of a remote run: local files, and what of them the store is known to hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from rlcm_cli.core.digests import sha256
from rlcm_cli.store.remote.stage import open_stage

URL = "s3://bucket/experiments/run"


@pytest.fixture
def stages(monkeypatch, tmp_path):
    monkeypatch.setenv("RLCM_STAGE", str(tmp_path / "stages"))
    return tmp_path / "stages"


@pytest.fixture
def stage(stages):
    return open_stage(URL)


def write(stage, name: str, content: bytes = b"x") -> Path:
    path = stage.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_url_has_one_stage_named_like_the_run(stages):
    stage = open_stage(URL)
    assert stage.layout.root.is_dir()
    assert stage.layout.root.name == "run"
    assert stage.layout.root.is_relative_to(stages)
    assert open_stage(URL) == stage
    others = {open_stage(url).layout.root for url in ("s3://bucket/other/run", "gs://bucket/experiments/run")}
    assert len({stage.layout.root, *others}) == 3


def test_a_relative_place_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLCM_STAGE", "here")
    assert open_stage(URL).layout.root.is_relative_to(tmp_path / "here")


def test_names_and_places_are_of_the_run(stage):
    path = stage.path("rollouts/000001/manifest.json")
    assert path == stage.layout.root / "rollouts/000001/manifest.json"
    assert stage.name(path) == "rollouts/000001/manifest.json"
    with pytest.raises(ValueError, match="is not in the subpath"):
        stage.name(Path("/elsewhere"))


def test_a_file_that_is_not_there_reads_as_none(stage):
    assert stage.read("a/b") is None
    write(stage, "a/b", b"content")
    assert stage.read("a/b") == b"content"


def test_the_ledger_knows_what_the_store_holds(stage):
    write(stage, "a", b"one")
    assert (stage.synced("a"), stage.is_synced("a")) == (None, False)
    stage.note("a", b"one")
    assert (stage.synced("a"), stage.is_synced("a")) == (sha256(b"one"), True)
    write(stage, "a", b"two")
    assert (stage.synced("a"), stage.is_synced("a")) == (sha256(b"one"), False)
    stage.forget("a")
    assert stage.synced("a") is None
    stage.forget("a")


def test_what_only_the_store_holds_is_not_as_it_is_here(stage):
    stage.note("deep/er/a", b"one")
    assert stage.synced("deep/er/a") == sha256(b"one")
    assert not stage.is_synced("deep/er/a")


def test_the_ledger_is_not_of_the_run_and_outlives_its_files(stage):
    stage.note("a", b"one")
    assert stage.names() == []
    assert open_stage(URL).synced("a") == sha256(b"one")
    assert not stage.ledger.is_relative_to(stage.layout.root)


def test_names_are_those_of_files_that_are_whole_and_not_in_quarantine(stage):
    for name in ("b", "a/c", "quarantine/x/y", "a/half.tmp", "folder.tmp/z", "a/quarantine/d"):
        write(stage, name)
    stage.path("empty").mkdir()
    assert stage.names() == ["a/c", "a/quarantine/d", "b"]
    assert stage.names("a/*") == ["a/c"]


def test_one_process_at_a_time(stage):
    with stage.lock(), pytest.raises(Timeout):
        FileLock(stage.ledger.with_name(".lock"), timeout=0).acquire()
    with FileLock(stage.ledger.with_name(".lock"), timeout=0):
        pass


def test_a_folder_that_gets_its_name_while_names_are_listed_is_listed(stage, monkeypatch):
    write(stage, "checkpoints/.000001.tmp/weights")
    scan = os.scandir

    def publish_first(folder):
        path = Path(os.fspath(folder))
        if path.name == ".000001.tmp" and path.exists():
            path.rename(path.with_name("000001"))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", publish_first)
    assert stage.names() == ["checkpoints/000001/weights"]
