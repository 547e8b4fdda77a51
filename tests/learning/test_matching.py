"""Distribution matching: its gradient, the second score that learns, resuming, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_runs import describe_family_run
from model_helpers import load_tiny, shake_lora
from phase_runs import fingerprint, finish, make_config, make_loop, prepare
from teacher_pipelines import build_teacher
from tiny_sana import build_sana
from torch import Tensor

from rlcm_cli.cli.app import main
from rlcm_cli.config import Config, override_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning import matching as module
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.matching import FakeScore, accumulate_matching, start_matching
from rlcm_cli.learning.optimizer import make_optimizer
from rlcm_cli.models.lora import attach_lora, lora_parameters
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.runs.policy import load_policy_model, start_run
from rlcm_cli.runs.teacher import find_teacher
from rlcm_cli.store.checkpoint import read_trainer_state
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics

SAMPLES = 8


@pytest.fixture(scope="module")
def teacher_folder(tiny_lcm, tmp_path_factory):
    return build_teacher(tmp_path_factory.mktemp("teacher") / "teacher", tiny_lcm)


def matched(folder: Path, source: Path, weight: float = 0.5, **sections: Any) -> Config:
    settings = {"weight": weight, "rank": 2, "alpha": 4, "calls": "any", **sections.pop("matching", {})}
    return make_config(folder, teacher={"source": str(source)}, matching=settings, **sections)


@pytest.fixture(scope="module")
def drawn(tiny_lcm, teacher_folder, tmp_path_factory):
    config = matched(tiny_lcm, teacher_folder)
    run, model = prepare(tmp_path_factory.mktemp("matched") / "run", config)
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    shake_lora(model)
    model.adapter_digest = None
    return model, rollout


def make_fake(folder: Path, config: Config) -> FakeScore:
    teacher = load_tiny(folder)
    attach_lora(teacher, rank=2, alpha=4, target_modules=None, run_seed=3)
    shake_lora(teacher)
    parameters = lora_parameters(teacher)
    return FakeScore(teacher, parameters, make_optimizer(parameters, config.train, 1e-3))


def take_gradient(parameters: dict[str, torch.nn.Parameter]) -> Tensor:
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters.values()])
    for parameter in parameters.values():
        parameter.grad = None
    return gradient.clone()


@pytest.mark.parametrize(("calls", "times"), [("any", "uniform"), ("last", "logit-normal")])
def test_the_gradients_are_those_of_the_definitions(tiny_lcm, teacher_folder, drawn, calls, times):
    """Of the policy, and of the denoising loss of the second score."""
    model, rollout = drawn
    config = matched(tiny_lcm, teacher_folder, 0.7, matching={"calls": calls, "times": times})
    fake, samples = make_fake(teacher_folder, config), torch.tensor([5, 2, 7, 0, 1])
    matching, teacher = start_matching(config, rollout, fake), fake.model
    generator = module.seed_generator(module.derive_seed(11, "matching"))
    chosen = module._draw_calls(rollout, matching.settings, 5, generator)
    (steps, noise), (fake_steps, fake_noise) = (
        module._draw_noise(matching, 5, generator, fake=is_fake) for is_fake in (False, True)
    )
    assert (chosen == 3).all() == (calls == "last")

    def levels(of: Any, time: Tensor) -> tuple[Tensor, Tensor]:
        return of.alphas_cumprod[time].sqrt(), (1 - of.alphas_cumprod[time]).sqrt()

    loss, fake_loss = torch.zeros(()), torch.zeros(())
    for row, sample in enumerate(samples.tolist()):
        time = rollout.schedule.timesteps[chosen[row]]
        state = rollout.trajectories.latents_BSCHW[sample, chosen[row]][None]
        tables = {
            name: table[rollout.conditioning_index[sample]][None] for name, table in rollout.conditioning.items()
        }
        alpha, sigma = levels(model, time)
        image = (state - sigma * model.predict(state, time[None], tables, 4.0)) / alpha
        texts = teacher.encode_prompts([rollout.prompts[sample]])
        alpha, sigma = levels(teacher, steps[row])
        noised = alpha * image.detach() + sigma * noise[row]
        with torch.no_grad():
            second = (noised - sigma * teacher.predict(noised, steps[row][None], texts, 1.0)) / alpha
            with teacher.trained.base_model(teacher):
                real = (noised - sigma * teacher.predict(noised, steps[row][None], texts, 4.0)) / alpha
        step = (second - real) / (image.detach() - real).abs().mean()
        loss = loss + 0.7 * 0.5 * (image - (image - step).detach()).square().mean() / 5
        alpha, sigma = levels(teacher, fake_steps[row])
        output = teacher.predict(alpha * image.detach() + sigma * fake_noise[row], fake_steps[row][None], texts, 1.0)
        fake_loss = fake_loss + (output - fake_noise[row]).square().mean() / 5
    loss.backward()
    fake_loss.backward()
    expected, fake_expected = (take_gradient(lora_parameters(one)) for one in (model, teacher))

    taken = []
    fake.optimizer.register_step_pre_hook(lambda *_: taken.append(take_gradient(lora_parameters(teacher))))
    for size in (8, 2):
        learner = Learner(
            model,
            rollout,
            torch.zeros(SAMPLES),
            override_config(config, flags={"runtime.micro_batch_size": size, "train.max_grad_norm": 0.0}),
        )
        found = accumulate_matching(learner, matching, samples, 11)
        gradient = take_gradient(lora_parameters(model))
        assert (gradient - expected).norm() < 2e-3 * expected.norm()
        assert (taken[-1] - fake_expected).norm() < 2e-3 * fake_expected.norm()
        assert found["fake_score_loss"].item() == pytest.approx(fake_loss.item(), rel=1e-3)
        assert found["matching_distance"] > 0


def test_in_the_warm_up_only_the_second_score_learns(tiny_lcm, teacher_folder, drawn):
    model, rollout = drawn
    config = matched(tiny_lcm, teacher_folder, matching={"warmup_steps": 4, "steps": 2})
    matching = start_matching(config, rollout, make_fake(teacher_folder, config))
    learner, samples = Learner(model, rollout, torch.zeros(SAMPLES), config), torch.arange(SAMPLES)
    steps, learns = [], []
    for seed in range(3):
        accumulate_matching(learner, matching, samples, seed)
        steps.append(matching.fake.steps)
        learns.append(any(parameter.grad is not None for parameter in lora_parameters(model).values()))
    assert (steps, learns) == ([2, 4, 6], [False, False, True])
    take_gradient(lora_parameters(model))


def test_the_second_score_learns_the_images_of_the_policy(tiny_lcm, teacher_folder, drawn):
    model, rollout = drawn
    config = matched(tiny_lcm, teacher_folder, matching={"warmup_steps": 1000})
    matching = start_matching(config, rollout, make_fake(teacher_folder, config))
    for group in matching.fake.optimizer.param_groups:
        group["lr"] = 1e-2
    learner, samples = Learner(model, rollout, torch.zeros(SAMPLES), config), torch.arange(SAMPLES)
    losses = [
        accumulate_matching(learner, matching, samples, seed % 2)["fake_score_loss"].item() for seed in range(40)
    ]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_it_resumes_to_the_byte(tiny_lcm, teacher_folder, tmp_path):
    config = matched(tiny_lcm, teacher_folder, train={"minibatch_size": 4}, runtime={"iterations": 3})
    straight = make_loop(tmp_path / "straight", config)
    for iterations in (1, 3):
        run, model = start_run(tmp_path / "resumed", override_config(config, flags={"runtime.iterations": iterations}))
        finish(loop(run, model, load_scorers(run)))
    one, other = (fingerprint(root) for root in (straight.layout.root, tmp_path / "resumed"))
    same = [name for name in one if name.startswith(("checkpoints", "rollouts", "metrics/"))]
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert {f"checkpoints/000003/fake/{name}.safetensors" for name in ("optimizer", "pytorch_lora_weights")} <= {*same}
    assert all(row.measured["matching_distance"] > 0 for row in read_metrics(straight.layout))


def test_a_flow_matching_model_learns_by_both_terms(tmp_path):
    """Matching, and the teacher's images as targets, from a teacher that is guided where the policy is not."""
    pipelines = [build_sana(tmp_path / name) for name in ("sana", "teacher")]
    options = describe_family_run(tmp_path, pipelines[0], load_tiny(pipelines[0]))
    values = {"teacher.source": pipelines[1], "teacher.guidance_scale": 3.0, "teacher.weight": 0.1}
    settings = [f"--set={key}={value}" for key, value in {**values, "matching.weight": 0.1}.items()]
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--no-cache", "--quiet", *map(str, options), *settings, f"--run={tmp_path / 'run'}"])
    assert not leaving.value.code
    (row,) = read_metrics(RunLayout(tmp_path / "run"))
    assert min(row.measured[name] for name in ("teacher_distance", "matching_distance", "fake_score_loss")) > 0


class TestRefusals:
    def test_the_base_model_is_no_teacher_of_many_steps(self, tiny_lcm):
        with pytest.raises(
            ConfigError, match=r"matching\.weight needs a teacher of many steps, .* set teacher\.source"
        ):
            make_config(tiny_lcm, matching={"weight": 1.0})

    def test_a_distilled_pipeline_neither(self, tiny_lcm, tiny_lcm_copy):
        config = matched(tiny_lcm, tiny_lcm_copy)
        with pytest.raises(ConfigError, match=r"was distilled to few steps, so that it is no score"):
            find_teacher(config, load_policy_model(config), ["a cat"])

    def test_settings_without_effect(self, tiny_lcm):
        with pytest.raises(ConfigError, match=r"\[matching\] has no effect while matching\.weight is 0"):
            make_config(tiny_lcm, matching={"steps": 5})
