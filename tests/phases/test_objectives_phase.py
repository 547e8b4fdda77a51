"""Each objective through the phases: it trains, is continued to the bit, and has the gradient of its formula."""

import dataclasses
import math

import pytest
import torch
from phase_runs import adapter, fingerprint, finish, largest_difference, make_config, prepare, shared_model

from rlcm_cli.config import parse_config
from rlcm_cli.core.gaussian import take_action
from rlcm_cli.errors import ConfigError
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.phases.gradient import Minibatch, accumulate_gradient, draw_minibatches
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.objectives import choose_objective
from rlcm_cli.phases.optimizer import clip_gradient
from rlcm_cli.phases.policy import load_policy_model
from rlcm_cli.phases.rollout import read_rollout
from rlcm_cli.phases.run import create_run, open_run
from rlcm_cli.phases.schedules import training_schedule
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.phases.train import train
from rlcm_cli.store.checkpoint import read_trainer_state
from rlcm_cli.store.run import read_metrics

SEVERAL = {"minibatch_size": 4, "inner_epochs": 2}
OBJECTIVES = {
    "ppo": {**SEVERAL, "timestep_fraction": 0.67},
    "grpo": {**SEVERAL, "timestep_fraction": 0.34, "advantages": "leave-one-out"},
    "reinforce": {"timestep_fraction": 0.67, "advantages": "batch"},
    "rebel": {**SEVERAL, "rebel_lr": 0.1},
    "rwr": {**SEVERAL, "timestep_fraction": 0.67},
    "rwr-sparse": {**SEVERAL, "rwr_share": 0.25},
}
RATES = {"lr_warmup_iterations": 1, "lr_schedule": "cosine", "lr_decay_iterations": 8}


def configure(tiny_lcm, objective, *, iterations=2, **train):
    return make_config(
        tiny_lcm,
        sample={"group_size": 2, "steps": 4},
        train={**OBJECTIVES[objective], **RATES, "objective": objective, **train},
        runtime={"iterations": iterations},
    )


def trained_files(root):
    """Digest what training made; evaluations follow from it."""
    return {name: digest for name, digest in fingerprint(root).items() if name.startswith(("checkpoints", "metrics"))}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_trains_and_is_continued_by_another_process_to_the_bit(tiny_lcm, tmp_path, objective):
    config = configure(tiny_lcm, objective)
    straight = create_run(tmp_path / "straight", config)
    finish(loop(straight, shared_model(tiny_lcm), load_scorers(straight)))
    rows = read_metrics(straight.layout)
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-4, 1e-3 * (1 + math.cos(math.pi / 8)) / 2])
    assert rows[0]["updates"] == (1 if objective == "reinforce" else 4)
    assert all(row["ratio_drift"] <= 2e-6 and row["grad_norm"] > 0 for row in rows)
    assert ("clip_fraction" in rows[0]) == (objective in ("ppo", "grpo"))

    root = tmp_path / "continued"
    for iterations in (1, 2):
        create_run(root, configure(tiny_lcm, objective, iterations=iterations))
        run = open_run(root)
        run = dataclasses.replace(run, config=configure(tiny_lcm, objective, iterations=iterations))
        finish(loop(run, load_policy_model(run.config), load_scorers(run)))
    assert trained_files(root) == trained_files(straight.layout.root)
    policies = {read_trainer_state(run.layout, number).policy_digest for number in range(3)}
    assert len(policies) == 3


def read_samples(tiny_lcm, root, objective, **train):
    """Give a rollout, and the model a little away from the policy that drew it."""
    run, model = prepare(root, configure(tiny_lcm, objective, **train))
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.adapter_digest = None
    return run.config.train, rollout, model


def gradient_of(model):
    gradient = {name: parameter.grad.clone() for name, parameter in lora_parameters(model).items()}
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    return gradient


def accumulate(model, rollout, minibatch, weights, settings, size=5):
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    record = accumulate_gradient(
        model, rollout, minibatch, weights, choose_objective(settings), settings, micro_batch_size=size
    )
    return record, gradient_of(model)


def whole(samples):
    """All three actions of some samples."""
    return Minibatch(samples, torch.arange(3).expand(len(samples), -1))


def test_rebel_with_several_groups_is_its_formula_by_hand(tiny_lcm, tmp_path):
    settings, rollout, model = read_samples(tiny_lcm, tmp_path / "run", "rebel")
    samples = torch.tensor([6, 7, 2, 3, 0, 1])  # three groups of two
    advantages = torch.linspace(-2, 1.5, 8) ** 3
    record, gradient = accumulate(model, rollout, whole(samples), advantages, settings)

    states = rollout.trajectories.latents_BSCHW
    log_ratios = torch.zeros(8)
    for step in range(3):
        rows = torch.arange(8)
        conditioning = {"prompt_embeds": rollout.conditioning["prompt_embeds"][rollout.conditioning_index]}
        timesteps = rollout.schedule.timesteps[step].expand(8)
        output = model.predict(states[:, step], timesteps, conditioning, 4.0)
        a, b, std = (getattr(rollout.schedule, name)[step].float() for name in ("of_latents", "of_output", "std"))
        mean = a * states[:, step] + b * output
        _, log_probs = take_action(mean, std.view(1, 1, 1, 1), action=states[rows, step + 1], reduction="mean")
        log_ratios = log_ratios + log_probs - rollout.trajectories.log_probs_BA[:, step]
    assert log_ratios.abs().max() > 1e-4, "the policy has moved"
    errors = [
        0.1 * (log_ratios[one] - log_ratios[other]) - (advantages[one] - advantages[other])
        for one, other in ((6, 7), (2, 3), (0, 1))
    ]
    loss = torch.stack(errors).square().mean()
    loss.backward()
    expected = gradient_of(model)
    assert record.values["loss"] == pytest.approx(loss.item(), rel=1e-5)
    scale = max(tensor.abs().max().item() for tensor in expected.values())
    assert largest_difference(gradient, expected) < 1e-4 * scale


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_micro_batch_changes_the_gradient_by_rounding_alone(tiny_lcm, tmp_path, objective):
    settings, rollout, model = read_samples(tiny_lcm, tmp_path / "run", objective, clip_range=0.5, kl_weight=0.3)
    weights = choose_objective(settings).weigh(torch.linspace(-2, 1.5, 8) ** 3)
    reference, expected = accumulate(model, rollout, whole(torch.arange(8)), weights, settings, size=24)
    scale = max(tensor.abs().max().item() for tensor in expected.values())
    for size in (7, 1):
        record, gradient = accumulate(model, rollout, whole(torch.arange(8)), weights, settings, size=size)
        assert largest_difference(gradient, expected) < 1e-4 * scale
        for name, value in reference.values.items():
            assert record.values[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


class TestMinibatches:
    def drawn(self, tiny_lcm, root, iteration=5, seed=0, **changes):
        """Give settings and minibatches of 8 samples in groups of 2, of three actions each."""
        settings, rollout, _ = read_samples(tiny_lcm, root, "ppo")
        settings = settings.model_copy(update={"minibatch_size": 4, "timestep_fraction": 1.0, **changes})
        return list(draw_minibatches(rollout, settings, seed, iteration))

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


@pytest.mark.parametrize("objective", ["rwr", "rwr-sparse"])
def test_the_weights_of_rwr_have_mean_1_over_a_round(tiny_lcm, objective):
    settings = configure(tiny_lcm, objective).train
    advantages = torch.randn(64, generator=torch.Generator().manual_seed(0))
    weights = choose_objective(settings).weigh(advantages)
    assert weights.sum().item() == pytest.approx(64, rel=1e-6)
    assert (weights >= 0).all()
    assert weights.argmax() == advantages.argmax() or objective == "rwr-sparse"
    if objective == "rwr":
        torch.testing.assert_close((weights / weights[0]).log(), 2.0 * (advantages - advantages[0]))
    else:
        best = advantages.topk(16).indices
        assert sorted(weights.nonzero().flatten().tolist()) == sorted(best.tolist())


@pytest.mark.parametrize("objective", ["ppo", "grpo", "reinforce", "rebel", "rwr"])
def test_advantages_are_clipped(tiny_lcm, objective):
    weigh = choose_objective(configure(tiny_lcm, objective, advantage_clip=2.0).train).weigh
    wide, clipped = torch.tensor([-50.0, 1.0, 7.0, 0.0]), torch.tensor([-2.0, 1.0, 2.0, 0.0])
    assert torch.equal(weigh(wide), weigh(clipped))


@pytest.mark.parametrize("objective", ["ppo", "rebel", "rwr"])
def test_a_clip_of_0_clips_nothing(tiny_lcm, objective):
    weigh = choose_objective(configure(tiny_lcm, objective, advantage_clip=0, rwr_beta=0.2).train).weigh
    wide = torch.tensor([-50.0, 1.0, 7.0, 0.0])
    # Of rwr the published softmax of 0.2 x the reward as it is.
    expected = 4 * torch.softmax(0.2 * wide, 0) if objective == "rwr" else wide
    torch.testing.assert_close(weigh(wide), expected)


def test_a_norm_of_0_shortens_no_gradient(tiny_lcm):
    parameter = torch.nn.Parameter(torch.zeros(2))
    for largest, expected in ((0, [3e3, 4e3]), (5, [3.0, 4.0])):
        parameter.grad = torch.tensor([3e3, 4e3])
        settings = configure(tiny_lcm, "ppo", max_grad_norm=largest).train
        assert clip_gradient([parameter], settings) == pytest.approx(5e3)
        assert parameter.grad.tolist() == pytest.approx(expected)


def test_rebel_ranks_actions_by_reward(tiny_lcm, tmp_path):
    """After an update along its gradient the better one of each pair has become likelier than the other."""
    settings, rollout, model = read_samples(tiny_lcm, tmp_path / "run", "rebel")
    before = adapter(model)
    advantages = torch.tensor([1.0, -1, -1, 1, 1, -1, -1, 1])
    _, gradient = accumulate(model, rollout, whole(torch.arange(8)), advantages, settings)
    reference, _ = accumulate(model, rollout, whole(torch.arange(8)), advantages, settings)
    length = sum(tensor.square().sum() for tensor in gradient.values()).sqrt()
    with torch.no_grad():
        for name, parameter in lora_parameters(model).items():
            parameter -= 1e-3 * gradient[name] / length
    record, _ = accumulate(model, rollout, whole(torch.arange(8)), advantages, settings)
    assert record.values["loss"] < reference.values["loss"]
    assert largest_difference(before, adapter(model)) > 0


@pytest.fixture(scope="module")
def teacher():
    """The embedded diffusion model, sampled with DDIM."""
    return load_policy_model(plain_config("emoji-diffusion"))


def plain_config(name, policy="auto", **sections):
    values = {"task": "compression", "rewards": {"compressibility": 1.0}, "runtime": {"device": "cpu"}}
    return parse_config({**values, **sections, "model": {"name": str(name), "policy": policy}})


def refused(config, model):
    """Give the message of the refusal."""
    with pytest.raises(ConfigError) as caught:
        training_schedule(config, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWhatMakesNoSense:
    def test_ddim_without_noise(self, teacher):
        message = refused(plain_config("emoji-diffusion", sample={"eta": 0.0}), teacher)
        assert "sample.eta is 0: no step of the policy ddim draws noise" in message

    @pytest.mark.parametrize("mode", ["noise", "backprop"])
    def test_a_last_step_of_its_own_where_ddim_draws_noise_in_all(self, teacher, mode):
        message = refused(plain_config("emoji-diffusion", last_step={"mode": mode}), teacher)
        assert f"last_step.mode {mode}" in message
        assert "ddim" in message

    def test_ddim_of_more_steps_than_it_was_trained_with(self, teacher):
        message = refused(plain_config("emoji-diffusion", sample={"steps": 1001}), teacher)
        assert "sample.steps is 1001, more than the 1000 timesteps" in message

    @pytest.mark.parametrize(
        ("sample", "words"),
        [
            ({"steps": 1}, "sample.steps is 1: no step of the policy lcm draws noise"),
            ({"steps": 51}, "sample.steps is 51, more than the schedule's 50 (sample.original_steps)"),
            ({"original_steps": 1001}, "sample.original_steps is 1001, more than the 1000 timesteps"),
        ],
    )
    def test_an_lcm_of_too_few_or_too_many_steps(self, tiny_lcm, sample, words):
        assert words in refused(plain_config(tiny_lcm, sample=sample), shared_model(tiny_lcm))

    @pytest.mark.parametrize("sample", [{"gamma": 0.0}, {"steps": 1}])
    def test_tcd_without_noise(self, sample):
        settings = plain_config("emoji-diffusion", "tcd", sample=sample)
        message = refused(settings, load_policy_model(settings))
        assert "no step of the policy tcd draws noise" in message
        assert f"sample.gamma is {sample.get('gamma', 0.3):g}" in message

    def test_an_lcm_of_one_step_has_an_action_where_noise_is_added(self, tiny_lcm):
        config = plain_config(tiny_lcm, sample={"steps": 1}, last_step={"mode": "noise"})
        assert training_schedule(config, shared_model(tiny_lcm)).actions == 1


def test_noise_at_the_last_step_trains_as_many_actions_as_calls(tiny_lcm, tmp_path):
    config = make_config(tiny_lcm, sample={"steps": 2}, last_step={"mode": "noise", "noise_std": 0.2})
    run, model = prepare(tmp_path / "run", config)
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    assert rollout.trajectories.actions == 2
    assert rollout.trajectories.latents_BSCHW.shape[1] == 3
    assert finish(train(run, model))[-1].metrics["ratio_drift"] <= 2e-6
