"""Each objective through the phases: it trains, is continued to the bit, and has the gradient of its formula."""

import dataclasses
import math

import pytest
import torch
from phase_runs import adapter, fingerprint, finish, largest_difference, make_config, prepare, shared_model

from rlcm_cli.config import override_config
from rlcm_cli.core.gaussian import take_action
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.optimizer import clip_gradient
from rlcm_cli.learning.update import weigh_samples
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.objectives import find_objective
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.phases.train import train
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.checkpoint import read_trainer_state
from rlcm_cli.store.metrics import read_metrics

SEVERAL = {"minibatch_size": 4, "inner_epochs": 2}
OBJECTIVES = {
    "ppo": {**SEVERAL, "timestep_fraction": 0.67},
    "grpo": {**SEVERAL, "timestep_fraction": 0.34, "advantages": "leave-one-out"},
    "dppo": {**SEVERAL, "timestep_fraction": 0.67},
    "grpo-guard": {**SEVERAL, "timestep_fraction": 0.67},
    "reinforce": {"timestep_fraction": 0.67, "advantages": "batch"},
    "rebel": SEVERAL,
    "rwr": {**SEVERAL, "timestep_fraction": 0.67},
    "rwr-sparse": SEVERAL,
    "awm": SEVERAL,
    "dpo": SEVERAL,
    "pso": SEVERAL,
}
KNOBS = {"rebel": {"rebel_lr": 0.1}, "rwr-sparse": {"share": 0.25}}
RATES = {"lr_warmup_iterations": 1, "lr_schedule": "cosine", "lr_decay_iterations": 8}


def configure(tiny_lcm, objective, *, iterations=2, knobs=None, **train):
    return make_config(
        tiny_lcm,
        sample={"group_size": 2, "steps": 4},
        objective={"kind": objective, **KNOBS.get(objective, {}), **(knobs or {})},
        train={**OBJECTIVES[objective], **RATES, **train},
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
    assert [row.learning_rate for row in rows] == pytest.approx([5e-4, 1e-3 * (1 + math.cos(math.pi / 8)) / 2])
    assert rows[0].updates == (1 if objective == "reinforce" else 4)
    assert all(row.measured["grad_norm"] > 0 for row in rows)
    assert all(row.measured["ratio_drift"] <= 2e-6 for row in rows if objective != "dpo")  # which has no ratio
    assert ("clip_fraction" in rows[0].measured) == (objective in ("ppo", "grpo", "grpo-guard", "awm", "pso"))

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
    return run.config, rollout, model


def gradient_of(model):
    gradient = {name: parameter.grad.clone() for name, parameter in lora_parameters(model).items()}
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    return gradient


def accumulate(model, rollout, minibatch, weights, config, size=5):
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    config = override_config(config, flags={"runtime.micro_batch_size": size})
    record = find_objective(config).accumulate(Learner(model, rollout, weights, config), minibatch)
    return record, gradient_of(model)


def whole(samples):
    """All three actions of some samples."""
    return Minibatch(samples, torch.arange(3).expand(len(samples), -1))


def test_rebel_with_several_groups_is_its_formula_by_hand(tiny_lcm, tmp_path):
    config, rollout, model = read_samples(tiny_lcm, tmp_path / "run", "rebel")
    samples = torch.tensor([6, 7, 2, 3, 0, 1])  # three groups of two
    advantages = torch.linspace(-2, 1.5, 8) ** 3
    record, gradient = accumulate(model, rollout, whole(samples), advantages, config)

    states = rollout.trajectories.latents_BSCHW
    log_ratios = torch.zeros(8)
    for step in range(3):
        rows = torch.arange(8)
        conditioning = {"prompt_embeds": rollout.conditioning["prompt_embeds"][rollout.conditioning_index]}
        timesteps = rollout.schedule.timesteps[step].expand(8)
        output = model.predict(states[:, step], timesteps, conditioning, 4.0)
        a, b, std = (getattr(rollout.schedule, name)[step].float() for name in ("latents_coef", "output_coef", "std"))
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


@pytest.mark.parametrize("objective", ["rwr", "rwr-sparse"])
def test_the_weights_of_rwr_have_mean_1_over_a_round(tiny_lcm, objective):
    config = configure(tiny_lcm, objective)
    advantages = torch.randn(64, generator=torch.Generator().manual_seed(0))
    weights = weigh_samples(config, advantages)
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
    config = configure(tiny_lcm, objective, advantage_clip=2.0)
    wide, clipped = torch.tensor([-50.0, 1.0, 7.0, 0.0]), torch.tensor([-2.0, 1.0, 2.0, 0.0])
    assert torch.equal(weigh_samples(config, wide), weigh_samples(config, clipped))


@pytest.mark.parametrize("objective", ["ppo", "rebel", "rwr"])
def test_a_clip_of_0_clips_nothing(tiny_lcm, objective):
    knobs = {"beta": 0.2} if objective == "rwr" else {}
    config = configure(tiny_lcm, objective, knobs=knobs, advantage_clip=0)
    wide = torch.tensor([-50.0, 1.0, 7.0, 0.0])
    # Of rwr the published softmax of 0.2 x the reward as it is.
    expected = 4 * torch.softmax(0.2 * wide, 0) if objective == "rwr" else wide
    torch.testing.assert_close(weigh_samples(config, wide), expected)


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


def test_noise_at_the_last_step_trains_as_many_actions_as_calls(tiny_lcm, tmp_path):
    config = make_config(tiny_lcm, sample={"steps": 2}, last_step={"mode": "noise", "noise_std": 0.2})
    run, model = prepare(tmp_path / "run", config)
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    assert rollout.trajectories.actions == 2
    assert rollout.trajectories.latents_BSCHW.shape[1] == 3
    assert finish(train(run, model))[-1].metrics.measured["ratio_drift"] <= 2e-6
