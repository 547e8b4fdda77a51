"""`rlcm serve-reward`: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from command_line import refuse

import rlcm_cli.rewards.remote
from rlcm_cli.cli.serve_reward import parse_rewards
from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import RewardSpec, load_reward

LONGEST = 120  # seconds; a loaded machine starts a process slowly


@contextlib.contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `rlcm serve-reward ARGUMENTS` in a process of its own; gives it, and the first line that it prints."""
    command = [sys.executable, "-m", "rlcm_cli", "serve-reward", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="a signal is sent to a process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_requests_under_way_end(tmp_path, number):
    code = tmp_path / "mine.py"
    code.write_text(
        "import pathlib, time, torch\n"
        "def slow(images, prompts, metadata):\n"
        f"    pathlib.Path({str(tmp_path / 'scoring')!r}).touch()\n"
        "    time.sleep(1)\n"
        "    return torch.full((len(images),), 7.0)\n"
    )
    with serving(f"{code}:slow") as (process, line):
        address = line.split(": ")[0]
        reward = load_reward(RewardSpec(address, {"patience": 0}))
        with ThreadPoolExecutor(1) as pool:
            rewards = pool.submit(reward.score, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a", "b"], [{}, {}])
            wait_for(tmp_path / "scoring")
            process.send_signal(number)
            assert rewards.result(LONGEST).tolist() == [7.0, 7.0]
        out, err = process.communicate(timeout=LONGEST)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "stopped; all pending requests were answered"
    assert err == ""


def test_it_prints_what_a_client_needs_and_no_token(monkeypatch):
    with serving(
        "sharpness", "compressibility", "--token-env", "MINE", "--batch", 8, "--max-mb", 1, MINE="s3cret-token"
    ) as (process, line):
        address, _, rest = line.partition(": ")
        lines = [line, *(process.stdout.readline() for _ in range(5))]
        root = address.removesuffix("/sharpness")
        monkeypatch.setenv("RLCM_REWARD_TOKEN", "s3cret-token")
        reward = load_reward(RewardSpec(f"{root}/compressibility"))
        assert reward.revision in lines[1]
        assert load_reward(RewardSpec(address)).revision in rest
        monkeypatch.setenv("RLCM_REWARD_TOKEN", "wrong")
        with pytest.raises(RewardError, match="status 401"):
            load_reward(RewardSpec(address))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LONGEST)
    assert lines[1].startswith(f"{root}/compressibility: small as a JPEG")
    assert lines[3].split("#")[0].strip() == "export RLCM_REWARD_TOKEN=…"
    assert lines[4].strip() == f"curl {root}/health"
    assert lines[5].strip() == f"rlcm loop --task compression --reward {address}"
    assert "s3cret" not in "".join(lines) + out + err


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + LONGEST
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compresibility"], ("there is no reward 'compresibility'", "did you mean 'compressibility'?")),
        (["recognition", "--set", "flor=-5"], ("no setting 'flor'", "did you mean 'floor'?")),
        (["recognition", "--set", "floor"], ("--set floor: write key=value",)),
        (["recognition", "sharpness", "--set", "floor=-5"], ("--set floor=-5: write NAME.KEY=VALUE", "recognition")),
        (["recognition", "--set", "floor=5"], ("floor 5 must be a finite number below 0",)),
        (["compressibility", "--host", "0.0.0.0"], ("--host 0.0.0.0", "RLCM_REWARD_TOKEN is not set", "export")),  # noqa: S104
        (["compressibility", "--token-env", "NO_SUCH"], ("--token-env NO_SUCH", "export NO_SUCH=")),
        (["compressibility", "--host", "203.0.113.7", "--token-env", "PATH_OF_MINE"], ("cannot be listened on",)),
        (["compressibility", "--port", "99999"], ("'--port'", "65535")),
        (["compressibility", "--device", "cuda:77"], ("cuda:77",)),
        (["http://127.0.0.1"], ("write http://HOST:PORT/NAME",)),
        ([], ("missing argument",)),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("RLCM_REWARD_TOKEN", raising=False)
    monkeypatch.setenv("PATH_OF_MINE", "token")
    error = ConfigError if "cuda:77" not in words else _error_of_devices()
    refuse(capsys, error, "serve-reward", *arguments, saying=words)


def _error_of_devices():
    from rlcm_cli.core.device import select_device
    from rlcm_cli.errors import RlcmError

    with pytest.raises(RlcmError) as caught:
        select_device("cuda:77")
    return type(caught.value)


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        words = (f"--port {port} cannot be listened on", "in use", "choose others")
        refuse(capsys, ConfigError, "serve-reward", "compressibility", "--port", port, saying=words)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch, package):
    for room in ("app", "server", "service"):
        monkeypatch.delitem(sys.modules, f"rlcm_cli.rewards.remote.{room}", raising=False)
        monkeypatch.delattr(rlcm_cli.rewards.remote, room, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    words = (f"needs the package {package}", "pip install 'rlcm[serve]'")
    refuse(capsys, ConfigError, "serve-reward", "compressibility", saying=words)


def test_settings_find_their_reward():
    assert parse_rewards(["recognition"], ["floor=-5", "model=some/where"]) == [
        RewardSpec("recognition", {"floor": -5, "model": "some/where"})
    ]
    assert parse_rewards(["recognition", "sharpness"], ["recognition.floor=-5.5"]) == [
        RewardSpec("recognition", {"floor": -5.5}),
        RewardSpec("sharpness"),
    ]
