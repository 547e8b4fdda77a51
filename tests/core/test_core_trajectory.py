import torch

from rlcm_cli.core.trajectory import Trajectories, flatten_transitions, join_trajectories

TIMESTEPS = torch.tensor([[999, 499], [499, 259]])


def numbered(samples: int, first: int = 0) -> Trajectories:
    """Trajectories of two actions whose values say where they stand: 100 · sample + state."""
    sample = torch.arange(first, first + samples).float()[:, None] * 100
    latents = (sample + torch.arange(3))[:, :, None, None, None].expand(-1, -1, 4, 8, 8)
    return Trajectories(latents, -(sample + torch.arange(2)), TIMESTEPS, torch.arange(2))


def test_a_transition_is_a_state_its_action_and_their_log_prob():
    flat = flatten_transitions(numbered(4), torch.tensor([3, 1]), torch.tensor([[0, 1], [0, 1]]))
    assert len(flat) == 4
    # Step by step: neighbouring rows are of one step.
    assert flat.calls_N.tolist() == [0, 0, 1, 1]
    assert flat.samples_N.tolist() == [3, 1, 3, 1]
    assert flat.states_NCHW[:, 0, 0, 0].tolist() == [300, 100, 301, 101]
    assert flat.actions_NCHW[:, 0, 0, 0].tolist() == [301, 101, 302, 102]
    assert flat.log_probs_N.tolist() == [-300, -100, -301, -101]
    assert flat.states_NCHW.shape == flat.actions_NCHW.shape == (4, 4, 8, 8)


def test_each_sample_has_its_own_chosen_actions():
    flat = flatten_transitions(numbered(4), torch.tensor([3, 1, 0]), torch.tensor([[1], [0], [1]]))
    assert flat.calls_N.tolist() == [1, 0, 1]
    assert flat.samples_N.tolist() == [3, 1, 0]
    assert flat.states_NCHW[:, 0, 0, 0].tolist() == [301, 100, 1]
    assert flat.actions_NCHW[:, 0, 0, 0].tolist() == [302, 101, 2]
    assert flat.log_probs_N.tolist() == [-301, -100, -1]


def test_flattening_all_samples_loses_and_doubles_none():
    flat = flatten_transitions(numbered(5), torch.arange(5), torch.arange(2).expand(5, -1))
    pairs = set(zip(flat.samples_N.tolist(), flat.calls_N.tolist(), strict=True))
    assert len(flat) == 10
    assert pairs == {(sample, step) for sample in range(5) for step in range(2)}


def test_joined_shards_are_one_record_in_their_order():
    joined = join_trajectories([numbered(2), numbered(1, first=2), numbered(3, first=3)])
    whole = numbered(6)
    assert len(joined) == 6
    assert joined.actions == 2
    assert torch.equal(joined.latents_BSCHW, whole.latents_BSCHW)
    assert torch.equal(joined.log_probs_BA, whole.log_probs_BA)
    assert torch.equal(joined.timesteps_A2, TIMESTEPS)
