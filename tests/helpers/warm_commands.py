"""Preloaded by the fork server: all that a command imports, so that a forked one starts at once."""

import os

import torch

from rlcm_cli.config import parse_config
from rlcm_cli.runs.policy import load_policy_model

torch.set_num_threads(1)  # a process with a pool of threads cannot be forked
# A forked process has a pool of threads that torch makes again at the first use; two threads that use it first at once
# meet "Invalid thread pool!", so it is made before there are others.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"])))
# For what the libraries import late.
load_policy_model(parse_config({"task": "compression", "rewards": {"compressibility": 1.0}}))
