"""What was trusted on this machine before, and only that."""

from __future__ import annotations

import shutil
import stat

import pytest

from rlcm_cli.errors import StorageFullError
from rlcm_cli.store.trust import is_trusted, trust, trust_folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RLCM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_trusted_stays_so_until_the_folder_is_removed(cache):
    assert not is_trusted("code", "a")
    assert trust("code", "a") is True
    assert is_trusted("code", "a")
    assert trust("code", "a") is False
    assert trust_folder() == cache / "trust"
    shutil.rmtree(trust_folder())
    assert not is_trusted("code", "a")


def test_nothing_else_is_trusted_with_it():
    trust("code", "a")
    for parts in (("code",), ("a",), ("code", "b"), ("a", "code"), ("codea",), ("code", "a", ""), ()):
        assert not is_trusted(*parts)


def test_any_text_can_be_trusted_and_no_name_leaves_the_folder(cache):
    for text in ("../../x", "/etc/passwd", "é 🐻", "half \ud83d", "x" * 10_000):
        assert trust(text)
        assert is_trusted(text)
    assert all(len(file.name) == 64 for file in trust_folder().iterdir())
    assert [entry.name for entry in cache.iterdir()] == ["trust"]


def test_only_the_user_can_read_it():
    trust("code", "a")
    (file,) = trust_folder().iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_folder_in_the_way_is_not_trust():
    trust("code", "a")
    (file,) = trust_folder().iterdir()
    file.unlink()
    file.mkdir()
    assert not is_trusted("code", "a")


def test_a_cache_that_cannot_be_written_is_one_line_with_what_to_do(cache):
    cache.write_text("not a folder")
    with pytest.raises(StorageFullError) as caught:
        trust("code", "a")
    message = str(caught.value)
    assert message.startswith(f"{cache / 'trust'}: what is trusted cannot be kept there (Not a directory)")
    assert message.endswith("; set RLCM_CACHE to another folder")
    assert not is_trusted("code", "a")
