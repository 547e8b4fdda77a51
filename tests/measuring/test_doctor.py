"""What `rlcm doctor` finds on machines that lack this or that."""

from __future__ import annotations

import os
import socket
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from rlcm_cli.foreign import hub
from rlcm_cli.measuring.doctor import machine, packages, places
from rlcm_cli.measuring.doctor.finding import shorten_home
from rlcm_cli.models.embedded import integrity


def test_python_torch_and_memory_of_this_machine(monkeypatch):
    assert machine.check_python().status == "ok"
    assert machine.check_memory().found.endswith("B free")
    found = {finding.topic: finding for finding in machine.check_torch()}
    assert found["torch"].found.startswith(torch.__version__)
    assert (found["cpu"].status, found["cpu"].found.partition("; ")[2]) == ("ok", "float32, float16, bfloat16")
    monkeypatch.setattr(machine, "OLDEST_PYTHON", (99, 0))
    assert machine.check_python().status == "problem"


def test_a_gpu_that_torch_cannot_use_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(machine, "_read_driver", lambda: "570.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    (found,) = [finding for finding in machine.check_torch() if finding.topic == "cuda"]
    assert (found.status, found.found) == ("note", "NVIDIA driver 570.1 is here, and this torch cannot use it")
    assert "build for CUDA" in found.advice


def test_packages_that_are_missing_or_old_are_a_problem(monkeypatch):
    assert packages.check_packages().status == "ok"
    needed = [Requirement("diffusers>=999"), Requirement("not-there-at-all>=1"), Requirement("torch>=1")]
    monkeypatch.setattr(packages, "read_requirements", lambda: {"": needed})
    found = packages.check_packages()
    version = metadata.version("diffusers")
    assert found.status == "problem"
    assert found.found == f"diffusers is {version}, and >=999 is needed; not-there-at-all is not installed"
    assert found.advice.startswith("pip install")


def test_every_extra_is_looked_for_imported_and_what_is_absent_named(monkeypatch):
    extras = {
        "": [],
        "dev": [Requirement("ruff")],
        "fine": [Requirement("packaging>=1"), Requirement("pillow")],
        "gone": [Requirement("not-there-at-all>=1")],
    }
    monkeypatch.setattr(packages, "read_requirements", lambda: extras)
    fine, gone = packages.check_extras()
    assert (fine.topic, fine.status) == ("extra fine", "ok")
    assert f"pillow {metadata.version('pillow')}" in fine.found
    assert (gone.topic, gone.status) == ("extra gone", "note")
    assert "pip install 'rlcm[gone]'" in gone.advice


def test_the_extras_of_the_project_are_those_of_its_pyproject():
    found = packages.read_requirements()
    assert {"", "8bit", "alignment", "ocr", "serve"} <= found.keys()
    assert "torch" in {requirement.name for requirement in found[""]}


def test_a_module_that_fails_or_ends_the_process_is_told_of(monkeypatch, tmp_path):
    (tmp_path / "bad_module.py").write_text("raise ValueError('broken')")
    (tmp_path / "deadly_module.py").write_text("import os\nos.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert packages._import_modules(["json", "bad_module", "deadly_module", "csv"]) == {
        "json": "",
        "bad_module": "ValueError: broken",
        "deadly_module": "ended the process",
        "csv": "ended the process",
    }


def test_a_folder_for_runs_is_tried_and_not_made(tmp_path, monkeypatch):
    found = places.check_runs(tmp_path / "deep/runs")
    assert found.status in ("ok", "note")
    assert list(tmp_path.iterdir()) == []

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(places.tempfile, "TemporaryFile", refuse)
    found = places.check_runs(tmp_path)
    assert (found.status, "Permission denied" in found.found) == ("problem", True)


def test_a_damaged_embedded_model_is_a_problem(monkeypatch):
    assert places.check_embedded().status == "ok"
    monkeypatch.setitem(integrity.SHIPPED, "emoji-lcm", "0" * 64)
    found = places.check_embedded()
    assert (found.status, found.found) == ("problem", "emoji-lcm: not as shipped")


def test_caches_are_measured_and_home_is_not_spelt_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RLCM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/scores").write_bytes(b"0" * 3_000_000)
    found = {finding.topic: finding for finding in places.check_caches()}
    assert found["rlcm cache"].found == "~/cache: 3 MB"
    assert found["remote runs"].found == "~/cache/stages: not there yet"
    assert shorten_home(Path("/elsewhere")) == str(Path("/elsewhere"))


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_a_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_hub_that_is_off_away_or_silent_is_a_note_in_time(token, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    found = places.check_hub()
    assert (found.status, found.found) == ("note", "127.0.0.1 cannot be reached (ConnectError); a token is set")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
        started = time.monotonic()
        assert places.check_hub().status == "note"
        assert time.monotonic() - started < 3
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in places.check_hub().found
    assert os.environ["HF_TOKEN"] not in str(places.check_hub())
