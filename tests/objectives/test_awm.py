"""AWM's own: when the policy that drew is asked, and what it refuses."""

import pytest
from phase_runs import finish, make_config, prepare

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives.awm import count_forwards, needs_old
from rlcm_cli.phases.train import train


def configure(**sections):
    return parse_config(
        {"task": "mine", "rewards": {"compressibility": 1.0}, "objective": {"kind": "awm"}, **sections}
    )


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"timestep_fraction": 0.5}}, r"leave train\.timestep_fraction out"),
        ({"last_step": {"mode": "noise"}}, r"last_step\.mode noise is for policy gradients"),
        ({"train": {"advantages": "none"}}, r"takes per-prompt, batch, group"),
    ],
)
def test_what_makes_no_sense_is_refused(sections, words):
    with pytest.raises(ConfigError, match=words):
        configure(**sections)


@pytest.mark.parametrize(
    ("sections", "needed"),
    [
        ({}, False),
        ({"train": {"inner_epochs": 2}}, True),
        ({"train": {"minibatch_size": 32}}, True),
        ({"sample": {"staleness": 1}}, True),
    ],
)
def test_the_policy_that_drew_is_asked_where_it_may_be_another(sections, needed):
    config = configure(**sections)
    assert needs_old(config) == needed
    assert count_forwards(config, 0) == 4 * (3 + needed) * config.train.inner_epochs


def test_without_another_policy_every_ratio_is_1(tiny_lcm, tmp_path):
    run, model = prepare(tmp_path / "run", make_config(tiny_lcm, objective={"kind": "awm"}))
    measured = finish(train(run, model))[-1].metrics.measured
    assert (measured["ratio"], measured["approx_kl"], measured["clip_fraction"]) == (1, 0, 0)
