"""Where this machine keeps what it can make or fetch again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcm_cli.store.cache import cache_folder, stages_folder


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    for name in ("RLCM_CACHE", "RLCM_STAGE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_cache_is_in_the_home_folder_unless_a_variable_says_otherwise(monkeypatch, home):
    assert cache_folder() == home / ".cache/rlcm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/rlcm")
    monkeypatch.setenv("RLCM_CACHE", "/own")
    assert cache_folder() == Path("/own")


def test_stages_are_in_the_cache_unless_a_variable_says_otherwise(monkeypatch, home):
    assert stages_folder() == home / ".cache/rlcm/stages"
    monkeypatch.setenv("RLCM_CACHE", "/own")
    assert stages_folder() == Path("/own/stages")
    monkeypatch.setenv("RLCM_STAGE", "/large/disk")
    assert (stages_folder(), cache_folder()) == (Path("/large/disk"), Path("/own"))


@pytest.mark.parametrize("name", ["RLCM_CACHE", "RLCM_STAGE", "XDG_CACHE_HOME"])
def test_an_empty_variable_is_as_none(monkeypatch, home, name):
    monkeypatch.setenv(name, "")
    assert cache_folder() == home / ".cache/rlcm"
    assert stages_folder() == home / ".cache/rlcm/stages"


def test_nothing_is_made_by_asking(home):
    stages_folder()
    assert list(home.iterdir()) == []
