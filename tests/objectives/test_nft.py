"""DiffusionNFT's own: how good an image is, which policy draws, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from phase_runs import adapter, copy_run, fingerprint, finish, make_config, prepare

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.models.lora import bind_lora
from rlcm_cli.objectives.nft import NftSettings, share_of_old, weigh
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.phases.train import gather_data, keep_old_policy, train
from rlcm_cli.runs.policy import load_checkpoint, load_drawing_policy, load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.checkpoint import OLD_FOLDER, read_average, read_trainer_state, read_weights
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.verification import verify_run

COMPARED = ("checkpoints", "rollouts", "metrics")
PARITY = Path(__file__).parent.parent / "data" / "parity"
KEEPS = {"kind": "nft", "times": 2, "old_share": 0.6, "old_share_growth": 0.2}
"""An old policy that keeps 0.4 of itself after two optimizer steps, and 0.6 from three on."""


def configure(**sections):
    return parse_config(
        {"task": "mine", "rewards": {"compressibility": 1.0}, "objective": {"kind": "nft"}, **sections}
    )


def run_config(model, iterations=3, **sections):
    settings = {"train": {"minibatch_size": 4}, **sections}
    return make_config(model, objective=KEEPS, runtime={"iterations": iterations}, **settings)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"timestep_fraction": 0.5}}, r"leave train\.timestep_fraction out"),
        ({"last_step": {"mode": "noise"}}, r"last_step\.mode noise is for policy gradients"),
        ({"train": {"advantages": "none"}}, r"takes per-prompt, batch, group"),
    ],
)
def test_what_makes_no_sense_is_refused(sections, words):
    configure()
    with pytest.raises(ConfigError, match=words) as caught:
        configure(**sections)
    assert "\n" not in str(caught.value)


def test_samples_of_another_policy_are_refused(tiny_lcm, tmp_path):
    run, model = prepare(tmp_path / "run", run_config(tiny_lcm))
    with pytest.raises(ConfigError, match="compares with the policy that drew"):
        finish(train(run, model, off_policy=True))


def test_an_image_is_good_by_its_advantage():
    goodness = weigh(NftSettings(advantage_range=2.0), torch.tensor([-9.0, -2.0, -1.0, 0.0, 0.5, 2.0, 3.0]))
    assert goodness.tolist() == [0, 0, 0.25, 0.5, 0.625, 1, 1]


def test_the_share_of_the_old_policy_is_the_published_one():
    published = {
        1: NftSettings(),
        2: NftSettings(old_share=0.999, old_share_growth=0.0075, old_share_start=75),
    }
    for row in json.loads((PARITY / "nft.json").read_text())["shares"]:
        assert share_of_old(published[row["kind"]], row["step"]) == pytest.approx(row["share"], abs=1e-12), row


def make_loop(root, config):
    run, model = create_run(root, config), load_policy_model(config)
    finish(loop(run, model, load_scorers(run)))
    assert verify_run(run.layout) == []
    return run, model


@pytest.fixture(scope="module")
def straight(tiny_lcm, tmp_path_factory):
    """A run of three iterations, of two optimizer steps each, and its model."""
    return make_loop(tmp_path_factory.mktemp("nft") / "run", run_config(tiny_lcm))


def check_drawers(run, model, staleness):
    """Check that what draws is the recurrence over the checkpoints, and that it drew."""
    trained = [bind_lora(model, read_weights(run.layout, number)) for number in range(4)]
    old = trained[0]
    for number in (1, 2, 3):
        share = min(0.2 * 2 * number, 0.6)
        old = {name: share * old[name] + (1 - share) * weights for name, weights in trained[number].items()}
        kept = bind_lora(model, read_average(run.layout, number, OLD_FOLDER))
        for name, weights in kept.items():
            torch.testing.assert_close(weights, old[name], atol=1e-7, rtol=1e-5)
            assert not torch.equal(weights, trained[number][name])
    drawers = [read_manifest(run.layout.manifest(number)).policy for number in range(3)]
    assert [drawer.checkpoint for drawer in drawers] == [0, *range(1 - staleness, 3 - staleness)]
    states = [read_trainer_state(run.layout, number) for number in range(4)]
    # The first is drawn by the weights that it trains, later ones by none that a checkpoint trains.
    assert drawers[0].digest == states[0].policy_digest
    assert drawers[2].digest not in {state.policy_digest for state in states}


def test_an_average_of_the_weights_draws(straight):
    check_drawers(*straight, staleness=0)


def test_an_average_of_the_checkpoint_before_draws_where_sampling_is_ahead(tiny_lcm, tmp_path):
    check_drawers(*make_loop(tmp_path / "run", run_config(tiny_lcm, sample={"staleness": 1})), staleness=1)


def test_what_drew_is_what_is_compared_with(straight, tmp_path):
    run, model = copy_run(straight[0].layout.root, tmp_path / "run"), straight[1]
    shutil.rmtree(run.layout.checkpoint(3))
    state = load_drawing_policy(run, model, 2)
    drew = adapter(model)
    assert read_manifest(run.layout.manifest(2)).policy.digest == state.policy_digest
    load_checkpoint(run, model, 2)
    now = adapter(model)
    assert all(not torch.equal(drew[name], now[name]) for name in now)
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 2), off_policy=False)
    data = keep_old_policy(run, gather_data(run, model, rollout, np.zeros(8), None), on_policy=False)
    assert all(torch.equal(drew[name], weights) for name, weights in data.learner.old_weights.items())
    assert all(torch.equal(now[name], weights) for name, weights in adapter(model).items())


def test_it_is_continued_to_the_byte(tiny_lcm, straight, tmp_path):
    """The average that draws, too."""
    run = copy_run(straight[0].layout.root, tmp_path / "continued")
    shutil.rmtree(run.layout.checkpoint(3))
    shutil.rmtree(run.layout.rollout(2))
    finish(loop(run, load_policy_model(run.config), load_scorers(run)))
    made = {name: digest for name, digest in fingerprint(run.layout.root).items() if name.startswith(COMPARED)}
    assert f"checkpoints/000003/{OLD_FOLDER}/pytorch_lora_weights.safetensors" in made
    expected = fingerprint(straight[0].layout.root)
    assert made == {name: digest for name, digest in expected.items() if name.startswith(COMPARED)}


def test_an_iteration_without_a_step_leaves_what_draws_as_it_is(tiny_lcm, tmp_path):
    config = run_config(tiny_lcm, iterations=2, train={"minibatch_size": 4, "lr_decay_iterations": 2})
    run, _ = make_loop(tmp_path / "run", config)
    before, after = (read_average(run.layout, number, OLD_FOLDER) for number in (1, 2))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_whole_denoisers_are_averaged_too(tiny_lcm, tmp_path):
    config = run_config(tiny_lcm, iterations=2, train={"parameters": "full", "learning_rate": 1e-4})
    run, _ = make_loop(tmp_path / "run", config)
    assert read_average(run.layout, 1, OLD_FOLDER) is not None
