"""DPO's own: pairs of groups, and what it refuses; with PSO, since both learn from pairs."""

import pytest
from phase_runs import finish, make_config, prepare, scorers_of

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import _preferences, dpo, pso
from rlcm_cli.phases.score import score
from rlcm_cli.phases.train import train


def configure(kind, train=None, **sections):
    sample = {"group_size": 2, **sections.pop("sample", {})}
    return parse_config(
        {
            "task": "mine",
            "rewards": {"compressibility": 1.0},
            "objective": {"kind": kind},
            "sample": sample,
            "train": train or {},
            **sections,
        }
    )


@pytest.mark.parametrize("kind", ["dpo", "pso"])
@pytest.mark.parametrize(
    ("train", "sections", "words"),
    [
        ({}, {"sample": {"group_size": 1}}, r"compares images of a prompt; set sample\.group_size \(now 1\) to 2"),
        ({"minibatch_size": 2}, {"sample": {"group_size": 4}}, "pairs would be torn"),
        ({"timestep_fraction": 0.5}, {}, r"train\.timestep_fraction"),
        ({"advantages": "batch"}, {}, "takes group, leave-one-out"),
    ],
)
def test_what_leaves_no_pairs_is_refused(kind, train, sections, words):
    configure(kind)
    with pytest.raises(ConfigError, match=words) as caught:
        configure(kind, train, **sections)
    assert "\n" not in str(caught.value)


def test_pso_refuses_weights_of_actions():
    with pytest.raises(ConfigError, match="every action counts alike"):
        configure("pso", {"step_weights": "noise"})


def test_pso_refuses_the_last_calls_of_a_trajectory_by_themselves():
    with pytest.raises(ConfigError, match="compares whole trajectories"):
        configure("pso", last_step={"mode": "backprop", "calls": 2})


def test_only_samples_in_pairs_cost_forwards():
    for group, share in ((2, 1), (8, 0.25)):
        sample = {"group_size": group, "samples": 64}
        assert _preferences.share_of_samples(configure("dpo", sample=sample)) == share
        assert dpo.count_forwards(configure("dpo", sample=sample), 3) == share * 4
        # A pass of the policy and one of the base model come first.
        assert pso.count_forwards(configure("pso", sample=sample), 3) == share * 3 * (1 + 1 + 3)


@pytest.mark.parametrize("kind", ["dpo", "pso"])
def test_a_group_without_a_better_image_is_left_out(tiny_lcm, tmp_path, kind):
    """And a step that has none but such does nothing."""
    config = make_config(
        tiny_lcm, objective={"kind": kind}, sample={"group_size": 2}, train={"minibatch_size": 2, "inner_epochs": 2}
    )
    run, model = prepare(tmp_path / "run", config, upto="sample")
    seen = []

    def differ_once(images, prompts, metadata=None):
        rewards = images.flatten(1).float().mean(1) * 0
        rewards[0] = 0.0 if seen else 1.0
        seen.append(len(images))
        return rewards

    finish(score(run, scorers_of(run, {"compressibility": differ_once})))
    metrics = finish(train(run, model))[-1].metrics
    assert metrics.updates == 8
    assert metrics.measured["grad_norm"] > 0
    assert 0 < metrics.measured["loss"] < 0.2  # log 2 of one step in four
