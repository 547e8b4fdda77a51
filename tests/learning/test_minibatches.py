"""Which samples and actions each optimizer step trains on."""

import torch
from phase_runs import make_config, prepare

from rlcm_cli.learning.minibatches import draw_minibatches
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.store.checkpoint import read_trainer_state


class TestMinibatches:
    def drawn(self, tiny_lcm, root, iteration=5, seed=0, **changes):
        """Give settings and minibatches of 8 samples in groups of 2, of three actions each."""
        run, model = prepare(root, make_config(tiny_lcm, sample={"group_size": 2, "steps": 4}))
        rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
        settings = run.config.train.model_copy(update={"minibatch_size": 4, "timestep_fraction": 1.0, **changes})
        return list(
            draw_minibatches(rollout, run.config.model_copy(update={"train": settings, "seed": seed}), iteration)
        )

    def test_hold_every_sample_once_an_epoch_in_an_order_of_its_own(self, tiny_lcm, tmp_path):
        parts = self.drawn(tiny_lcm, tmp_path / "run", inner_epochs=8)
        assert [len(part.samples_M) for part in parts] == [4, 4] * 8
        epochs = [
            torch.cat([part.samples_M for part in parts[first : first + 2]]).tolist() for first in range(0, 16, 2)
        ]
        assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 8
        assert len({tuple(epoch) for epoch in epochs}) > 2
        assert all(part.steps_MK.tolist() == [[0, 1, 2]] * len(part.samples_M) for part in parts)

    def test_keep_groups_together(self, tiny_lcm, tmp_path):
        for part in self.drawn(tiny_lcm, tmp_path / "run", inner_epochs=20):
            groups = (part.samples_M // 2).tolist()
            assert groups[0::2] == groups[1::2]
            assert (part.samples_M % 2).tolist() == [0, 1] * 2

    def test_depend_on_run_iteration_and_epoch_alone(self, tiny_lcm, tmp_path):
        def order(name, **changes):
            parts = self.drawn(tiny_lcm, tmp_path / name, timestep_fraction=0.67, inner_epochs=8, **changes)
            return [(part.samples_M.tolist(), part.steps_MK.tolist()) for part in parts]

        drawn = order("one")
        assert order("again") == drawn
        assert order("iteration", iteration=6) != drawn
        assert order("seed", seed=1) != drawn

    def test_choose_a_share_of_the_actions_for_each_sample(self, tiny_lcm, tmp_path):
        parts = self.drawn(tiny_lcm, tmp_path / "run", timestep_fraction=0.67, inner_epochs=100)
        steps = torch.cat([part.steps_MK for part in parts])
        assert steps.shape == (800, 2)
        assert (steps[:, 0] < steps[:, 1]).all(), "no action twice"
        counts = torch.bincount(steps.flatten(), minlength=3) / 1600
        assert ((counts - 1 / 3).abs() < 0.05).all(), "all of them alike"
        assert len({tuple(row) for row in parts[0].steps_MK.tolist() + parts[1].steps_MK.tolist()}) > 1

    def test_train_the_chosen_actions_alone(self, tiny_lcm, tmp_path):
        parts = self.drawn(tiny_lcm, tmp_path / "run", actions=(0, 2))
        assert [part.steps_MK.tolist() for part in parts] == [[[0, 2]] * 4] * 2
        parts = self.drawn(tiny_lcm, tmp_path / "half", actions=(0, 2), timestep_fraction=0.5, inner_epochs=50)
        steps = torch.cat([part.steps_MK for part in parts]).flatten()
        assert set(steps.tolist()) == {0, 2}
        assert 0.4 < (steps == 0).double().mean() < 0.6
