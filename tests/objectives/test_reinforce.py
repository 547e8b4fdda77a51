"""REINFORCE's own: samples of the policy itself, so one step an iteration."""

import pytest

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import Need
from rlcm_cli.objectives.reinforce import OBJECTIVE


def configure(**sections):
    return parse_config(
        {"task": "mine", "rewards": {"compressibility": 1.0}, "objective": {"kind": "reinforce"}, **sections}
    )


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"inner_epochs": 2}}, "one optimizer step an iteration"),
        ({"train": {"minibatch_size": 32}}, "one optimizer step an iteration"),
        ({"sample": {"staleness": 1}}, "another policy draws"),
    ],
)
def test_whatever_moves_the_policy_first_is_refused(sections, words):
    configure()
    with pytest.raises(ConfigError, match=words):
        configure(**sections)


def test_it_says_so():
    assert Need.OWN_SAMPLES in OBJECTIVE.needs
    assert Need.OLD_LOG_PROBS not in OBJECTIVE.needs
