"""Stored transitions replayed: with their own prompt and call, cut into parts, shared by processes."""

import torch
from drawn_rollouts import SAMPLES, draw_rollout
from phase_runs import make_config, shared_model

from rlcm_cli.core.trajectory import flatten_transitions
from rlcm_cli.learning.replay import micro_batches, pick_conditioning, replay, replay_log_probs
from rlcm_cli.processes.job import Processes


def draw(tiny_lcm):
    model = shared_model(tiny_lcm)
    rollout = draw_rollout([model], make_config(tiny_lcm))
    actions = torch.arange(rollout.trajectories.actions)
    return (
        model,
        rollout,
        flatten_transitions(rollout.trajectories, torch.arange(SAMPLES), actions.expand(SAMPLES, -1)),
    )


def test_replaying_gives_what_was_stored_whatever_the_parts(tiny_lcm):
    model, rollout, transitions = draw(tiny_lcm)
    for size in (1, 5, 100):
        found = replay_log_probs(model, rollout, transitions, size)
        torch.testing.assert_close(found, transitions.log_probs_N, rtol=0, atol=2e-6)


def test_each_transition_has_the_conditioning_of_its_sample(tiny_lcm):
    model, rollout, _ = draw(tiny_lcm)
    samples = torch.tensor([3, 0, 3])
    picked = pick_conditioning(model, rollout, samples)
    expected = model.encode_prompts([rollout.prompts[sample] for sample in samples])
    assert picked.keys() == expected.keys()
    assert all(torch.equal(picked[name], expected[name]) for name in picked)


def test_parts_are_shares_of_the_whole(tiny_lcm):
    model, rollout, transitions = draw(tiny_lcm)
    parts = list(micro_batches(model, transitions, 7, Processes()))
    assert sum(share for share, _ in parts) == 1
    assert [len(part) for _, part in parts] == [7, 7, 7, 3]
    assert torch.equal(torch.cat([part.calls_N for _, part in parts]), transitions.calls_N)
    assert replay(model, rollout, parts[-1][1]).log_probs_N.requires_grad
