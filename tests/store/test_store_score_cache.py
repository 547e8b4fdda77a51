"""The cache of scores: what makes a key, what survives, and several processes at once."""

import functools
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from rlcm_cli.errors import StorageFullError
from rlcm_cli.store import score_cache
from rlcm_cli.store.score_cache import ScoreCache, default_cache, digest_images, score_keys

IMAGES = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", "a dog", "a cat"]


def keys(reward="digest revision", prompts=PROMPTS, images=IMAGES):
    return score_keys(reward, prompts, digest_images(images))


@pytest.fixture
def cache(tmp_path):
    opened = ScoreCache(tmp_path / "folder" / "scores.sqlite3")
    yield opened
    opened.close()


class TestKeys:
    def test_are_a_function_of_reward_prompt_and_pixels(self):
        assert keys() == keys(images=IMAGES.clone())
        assert len(set(keys())) == 3
        one = score_keys("digest revision", ["a cat"], digest_images(IMAGES[:1]))
        assert one == keys()[:1]  # of neither the batch nor the place in it

    @pytest.mark.parametrize(
        "change",
        [
            {"reward": "digest other"},
            {"reward": "other revision"},
            {"prompts": ["a cow"] * 3},
            {"images": IMAGES + 1},
            {"images": IMAGES.reshape(3, 3, 5, 4)},
            {"images": IMAGES.transpose(2, 3)},
        ],
    )
    def test_differ_where_anything_differs(self, change):
        assert not set(keys(**change)) & set(keys())

    def test_differ_by_a_single_bit_of_a_single_pixel(self):
        changed = IMAGES.clone()
        changed[1, 2, 3, 4] ^= 1
        assert [old == new for old, new in zip(keys(), keys(images=changed), strict=True)] == [True, False, True]

    def test_are_those_of_the_values_and_not_of_their_place_in_memory(self):
        strided = torch.stack([IMAGES, IMAGES], 1)[:, 0]
        assert not strided.is_contiguous()
        assert keys(images=strided) == keys()
        assert keys(images=IMAGES.contiguous(memory_format=torch.channels_last)) == keys()

    def test_do_not_mix_up_reward_and_prompt(self):
        assert score_keys("a", ["b c"], [b"d"]) != score_keys("a b", ["c"], [b"d"])


def test_what_was_remembered_is_found_and_nothing_else(cache):
    cache.remember(keys()[:2], torch.tensor([0.1, -3.25]))
    found = cache.look_up(keys())
    assert found.dtype == torch.float32
    assert found[:2].tolist() == torch.tensor([0.1, -3.25]).tolist()  # float32, bit for bit
    assert found[2].isnan()


def test_scores_survive_the_process_and_the_newest_counts(cache, tmp_path):
    cache.remember(keys()[:1], torch.tensor([1.0]))
    cache.remember(keys()[:1], torch.tensor([2.0]))
    cache.close()
    again = ScoreCache(tmp_path / "folder" / "scores.sqlite3")
    assert again.look_up(keys()[:1]).tolist() == [2.0]
    again.close()


def test_its_place_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RLCM_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own" / "scores.sqlite3"
    monkeypatch.delenv("RLCM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert default_cache() == tmp_path / "shared" / "rlcm" / "scores.sqlite3"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_cache() == tmp_path / ".cache" / "rlcm" / "scores.sqlite3"


def explained(act):
    with pytest.raises(StorageFullError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    assert "--no-cache" in message
    assert "RLCM_CACHE" in message
    return message


def test_a_file_that_is_no_cache_is_named(tmp_path):
    path = tmp_path / "scores.sqlite3"
    path.write_bytes(b"this is no table of SQLite, and it is longer than its header of 100 bytes" * 9)
    before = path.read_bytes()
    assert explained(lambda: ScoreCache(path)).startswith(f"{path}: the cache of scores cannot be used")
    assert path.read_bytes() == before


def test_a_cache_that_is_damaged_within_is_named(tmp_path):
    path = tmp_path / "scores.sqlite3"
    cache = ScoreCache(path)
    many = [number.to_bytes(16, "big") for number in range(5000)]
    cache.remember(many, torch.arange(5000.0))
    cache.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    broken = ScoreCache(path)
    assert str(path) in explained(lambda: broken.look_up(many))
    broken.close()


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    explained(lambda: ScoreCache(tmp_path / "file" / "scores.sqlite3"))


def test_several_threads_share_one(cache):
    def work(first):
        for number in range(first, first + 50):
            key = [number.to_bytes(16, "big")]
            cache.remember(key, torch.tensor([float(number)]))
            assert cache.look_up(key).tolist() == [float(number)]

    faults = []

    def guarded(first):
        try:
            work(first)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


class OpenedElsewhere(sqlite3.Connection):
    """SQLite's answer to the change of the journal while another process opens the file; it does not wait then."""

    locked = 2

    def execute(self, statement, *parameters):
        if "journal_mode" in statement and OpenedElsewhere.locked:
            OpenedElsewhere.locked -= 1
            raise sqlite3.OperationalError("database is locked")
        return super().execute(statement, *parameters)


@pytest.mark.parametrize("times", [2, 10**9])
def test_a_file_that_another_process_is_opening_is_waited_for(tmp_path, monkeypatch, times):
    monkeypatch.setattr(OpenedElsewhere, "locked", times)
    monkeypatch.setattr(score_cache, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=OpenedElsewhere))
    if times > 2:  # longer than anyone opens a file
        explained(lambda: ScoreCache(tmp_path / "scores.sqlite3"))
    else:
        ScoreCache(tmp_path / "scores.sqlite3").close()


WRITER = """
import pathlib, sys, time, torch
from rlcm_cli.store.score_cache import ScoreCache
path, name, first = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(path.parent / f"ready-{name}").touch()
while not (path.parent / "go").exists(): time.sleep(0.0005)
cache = ScoreCache(path)
for number in range(first, first + 300):
    cache.remember([number.to_bytes(16, "big")], torch.tensor([float(number)]))
    cache.look_up([(number + 1).to_bytes(16, "big")])
cache.close()
"""


def test_two_processes_open_make_and_fill_one_at_once(tmp_path):
    path = tmp_path / "scores.sqlite3"
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(first), str(first)], stderr=subprocess.PIPE)
        for first in (0, 200)  # they overlap
    ]
    while len(list(tmp_path.glob("ready-*"))) < len(processes):
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    for process in processes:
        _, printed = process.communicate(timeout=120)
        assert process.returncode == 0, printed.decode()
    cache = ScoreCache(path)
    assert cache.look_up([number.to_bytes(16, "big") for number in range(500)]).tolist() == list(range(500))
    cache.close()
