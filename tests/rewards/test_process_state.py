"""What other people's code changes in the process is restored."""

import contextlib
import os
import random

import numpy as np
import torch

from rlcm_cli.rewards.custom.process_state import preserved_environment, preserved_process


def draw():
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: S311


def test_torch_random_numbers_and_folder_are_restored(tmp_path):
    folder, threads = os.getcwd(), torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with contextlib.suppress(KeyError), preserved_process():
        first = draw()
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(threads + 1)
        torch.use_deterministic_algorithms(True)
        os.chdir(tmp_path)
        raise KeyError
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.getcwd() == folder
    assert draw() == first
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def test_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.delenv("ADDED", raising=False)
    with preserved_environment():
        os.environ["KEPT"] = "2"
        os.environ["ADDED"] = "1"
        del os.environ["REMOVED"]
    assert (os.environ["KEPT"], os.environ["REMOVED"], os.environ.get("ADDED")) == ("1", "1", None)
