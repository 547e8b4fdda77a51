"""What other people's code may change in this process without meaning to, kept as it is."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator


@contextlib.contextmanager
def preserved_process() -> Iterator[None]:
    """Restore what the body changes in torch, in random numbers and in the current directory.

    Of torch: default dtype, whether gradients are computed, threads, deterministic algorithms and the random numbers
    of the CPU; what this program draws on a GPU comes from its own generators.
    """
    import numpy as np
    import torch

    folder = _current_folder()
    plain, legacy, drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    dtype, gradients, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns_only)
        random.setstate(plain)
        np.random.set_state(legacy)
        torch.set_rng_state(drawn)
        if folder and _current_folder() != folder:
            os.chdir(folder)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed meanwhile
        return ""


@contextlib.contextmanager
def preserved_environment() -> Iterator[None]:
    """Restore what the body changes in the environment. Not for loading: libraries read later what is set then."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
