"""GRPO's own: advantages of a group."""

import pytest

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives.grpo import OBJECTIVE, GrpoSettings


def configure(**train):
    sections = {"objective": {"kind": "grpo"}, "sample": {"group_size": 2}, "train": train}
    return parse_config({"task": "mine", "rewards": {"compressibility": 1.0}, **sections})


def test_it_compares_within_groups():
    assert configure().advantage_kind == "group"
    assert configure(advantages="leave-one-out").advantage_kind == "leave-one-out"
    for kind in ("batch", "per-prompt", "none"):
        with pytest.raises(ConfigError, match=rf"objective\.kind grpo compares .* train\.advantages is {kind}"):
            configure(advantages=kind)


def test_it_clips_as_ppo_does():
    assert OBJECTIVE.clip_range(GrpoSettings()) == 1e-4
