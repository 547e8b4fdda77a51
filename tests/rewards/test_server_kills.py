"""Servers that are killed without warning: 8 clients, 2,000 images, three kills, every image scored once."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from reward_services import free_port, images

from rlcm_cli.rewards import RewardSpec, load_reward
from rlcm_cli.rewards.http import client, pool
from rlcm_cli.rewards.judges._images import encode_jpeg, to_pillow
from rlcm_cli.rewards.judges.llava_server import JPEG_QUALITY

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is killed by a signal")

CLIENTS, SHARE, TOGETHER = 8, 250, 10
KILLS = (300, 900, 1500)


class Killed:
    """A server in a process of its own, on one port, that is killed without warning and started again."""

    def __init__(self, command, log):
        self._command = [sys.executable, *map(str, command)]
        self._log = log
        self.lives = 0
        self._start()

    def _start(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(self._command, env=environment, stdout=self._log, stderr=self._log)
        self.lives += 1

    def restart(self):
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._start()

    def stop(self):
        self._process.kill()
        self._process.wait()


def store_rewards(folder, number, first, rewards):
    """Publish the rewards of a batch, once: to write them again is an error."""
    with (folder / f"{number:02d}-{first:04d}.json").open("x") as file:
        json.dump(rewards.tolist(), file)


def score_through_kills(server, make_reward, batch, prompts, folder):
    """Let 8 clients score their share of the images while the server is killed three times; give what is stored."""
    done, failed = [], []

    def work(number):
        try:
            reward = make_reward()
            for first in range(number * SHARE, (number + 1) * SHARE, TOGETHER):
                part = slice(first, first + TOGETHER)
                metadata = [{"sample": sample} for sample in range(first, first + TOGETHER)]
                rewards = reward.score(batch[part], prompts[part], metadata)
                store_rewards(folder, number, first, rewards)
                done.append(first)
        except BaseException as error:
            failed.append(error)
            raise

    with ThreadPoolExecutor(CLIENTS) as pool:
        working = [pool.submit(work, number) for number in range(CLIENTS)]
        for kill in KILLS:
            while len(done) * TOGETHER < kill and not failed:
                time.sleep(0.001)
            assert len(done) * TOGETHER < CLIENTS * SHARE
            server.restart()
        for future in working:
            future.result()
    stored = {}
    for file in folder.iterdir():
        first = int(file.stem.split("-")[1])
        for offset, value in enumerate(json.loads(file.read_text())):
            assert first + offset not in stored
            stored[first + offset] = value
    return [stored[sample] for sample in range(CLIENTS * SHARE)]


PIXELS = images(CLIENTS * SHARE, 64)
PROMPTS = [f"prompt {sample}" for sample in range(len(PIXELS))]


@pytest.fixture
def stored_by(tmp_path):
    """Score all images with a reward while its server, a command line, is killed; give what is stored, in order."""

    def score(command, spec):
        folder = tmp_path / "rewards"
        folder.mkdir()
        with (tmp_path / "log").open("wb") as log:
            server = Killed(command, log)
            try:
                return torch.tensor(score_through_kills(server, lambda: load_reward(spec), PIXELS, PROMPTS, folder))
            finally:
                server.stop()

    return score


def check_waiting(records, reason):
    lines = [record.getMessage() for record in records]
    assert any(re.search(reason, line) for line in lines)
    assert all("does not answer" in line for line in lines)
    assert all(record.levelno == logging.WARNING for record in records)


def test_our_own_server(stored_by, caplog, monkeypatch):
    reasons = []

    class Noted(client.NoReplyError):
        def __init__(self, reason, **known):
            super().__init__(reason, **known)
            reasons.append(reason)

    monkeypatch.setattr(client, "NoReplyError", Noted)
    monkeypatch.setattr(pool, "LONGEST_PAUSE", 1.0)
    port = free_port()
    # Requests wait in the server for others, so that a kill meets some that are under way.
    command = ["-m", "rlcm_cli", "serve-reward", "compressibility", "--port", port, "--batch", 1000]
    spec = RewardSpec(f"http://127.0.0.1:{port}/compressibility", {"timeout": 60.0, "patience": 300.0})
    stored = stored_by([*command, "--batch-wait", 20], spec)
    expected = load_reward(RewardSpec("compressibility")).score(PIXELS, PROMPTS, [{}] * len(PIXELS))
    assert torch.equal(stored, expected)
    check_waiting(caplog.records, "connection refused")
    assert "connection lost" in reasons


def test_a_llava_server(stored_by, caplog, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(pool, "LONGEST_PAUSE", 0.5)
    port = free_port()
    settings = {"judge": "llava-server", "endpoint": f"http://127.0.0.1:{port}", "timeout": 60.0, "patience": 300.0}
    command = [Path(__file__).with_name("llava_stand_in.py"), port]
    stored = stored_by(command, RewardSpec("prompt_image_alignment", settings))
    expected = [
        zlib.crc32(encode_jpeg(picture, JPEG_QUALITY) + f"The image contains {prompt}".encode()) / 2**32
        for picture, prompt in zip(to_pillow(PIXELS), PROMPTS, strict=True)
    ]
    assert torch.equal(stored, torch.tensor(expected))
    check_waiting(caplog.records, "connection refused")
    check_waiting(caplog.records, "connection lost")
