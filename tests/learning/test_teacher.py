"""The teacher's term: its gradient, whom it asks at which noise, what it learns, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_helpers import edit_json, load_tiny, shake_lora
from phase_runs import fingerprint, finish, make_config, make_loop, prepare
from teacher_pipelines import build_teacher
from torch import Tensor

from rlcm_cli.config import Config, override_config
from rlcm_cli.core.denoising import OutputType, choose_target, find_image
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ConfigError, ForeignFileError
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.renoising import find_noise_levels
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.learning.teacher import (
    Teacher,
    accumulate_last_distance,
    choose_teacher,
    find_misfit,
    match_times,
    predict_image,
)
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.objectives import OBJECTIVES
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.processes.job import Processes
from rlcm_cli.runs.policy import load_policy_model, start_run
from rlcm_cli.runs.teacher import find_teacher
from rlcm_cli.store.checkpoint import read_trainer_state
from rlcm_cli.store.metrics import read_metrics

SAMPLES, ACTIONS = 8, 3
FLOW_PAIR = ("emoji-sprint", "emoji-sana")


@pytest.mark.parametrize("output", ["epsilon", "sample", "v_prediction", "velocity"])
def test_the_image_of_a_prediction_is_that_of_its_target(output: OutputType):
    image, noise = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    alpha = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64).view(3, 1, 1, 1)
    sigma = 1 - alpha if output == "velocity" else (1 - alpha**2).sqrt()
    target = choose_target(output, image, noise, alpha, sigma)
    found = find_image(output, alpha * image + sigma * noise, target, alpha, sigma)
    assert (found - image).abs().max() < 1e-13


class TestToy:
    """A policy and a teacher that are linear functions of the latents, in float64."""

    LEVELS = torch.linspace(0.99, 0.05, 10, dtype=torch.float64)
    CALLS = torch.tensor([0, 1, 2, 1])
    TIMES = torch.tensor([9, 5, 2])

    def toy(self, slope: Tensor) -> Any:
        def predict(latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], guidance: float) -> Tensor:
            return slope * latents + conditioning["shift"] * guidance + 0.1 * timesteps.view(-1, 1, 1, 1)

        return SimpleNamespace(
            predict=predict,
            sampler=SimpleNamespace(levels="alpha_bar"),
            alphas_cumprod=self.LEVELS,
            prediction_type="epsilon",
            attached=None,
            device=torch.device("cpu"),
        )

    def made(self) -> tuple[Any, Teacher, Any, Tensor, Tensor]:
        slope = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64).view(1, 4, 1, 1).requires_grad_()
        generator = torch.Generator().manual_seed(0)
        latents, shift = torch.randn(2, 4, 4, 3, 3, dtype=torch.float64, generator=generator)
        teacher = Teacher(
            self.toy(torch.tensor(0.7, dtype=torch.float64)),
            2.0,
            3.0,
            self.TIMES,
            {"shift": shift[:2]},
            torch.tensor([0, 1, 1, 0]),
        )
        rollout = SimpleNamespace(schedule=SimpleNamespace(timesteps=self.TIMES))
        return self.toy(slope), teacher, rollout, slope, latents

    def distance(self, policy: Any, teacher: Teacher, rollout: Any, latents: Tensor) -> Tensor:
        samples, own = torch.arange(4), {"shift": torch.zeros(4, 4, 3, 3, dtype=torch.float64)}
        output = policy.predict(latents, self.TIMES[self.CALLS], own, 1.0)
        return teacher.measure_distance(policy, rollout, output, latents, self.CALLS, samples)

    def test_the_gradient_is_that_of_the_definition(self):
        policy, teacher, rollout, slope, latents = self.made()
        self.distance(policy, teacher, rollout, latents).mean().backward()
        found, slope.grad = slope.grad, None
        total = torch.zeros((), dtype=torch.float64)
        for sample, call in enumerate(self.CALLS):
            time = self.TIMES[call]
            # The levels as the program has them: roots in float32.
            alpha, sigma = (
                root.float().double() for root in (self.LEVELS[time] ** 0.5, (1 - self.LEVELS[time]) ** 0.5)
            )
            shift = teacher.conditioning["shift"][teacher.conditioning_index[sample]]
            own = slope[0] * latents[sample] + 0.1 * time
            asked = 0.7 * latents[sample] + 3.0 * shift + 0.1 * time
            images = [(latents[sample] - sigma * noise) / alpha for noise in (own, asked)]
            total = total + (images[0] - images[1]).square().mean() / 4
        total.backward()
        assert (found - slope.grad).abs().max() < 1e-8 * slope.grad.abs().max()

    def test_its_optimum_is_the_teacher(self):
        policy, teacher, rollout, slope, latents = self.made()
        teacher = dataclasses.replace(teacher, conditioning={"shift": torch.zeros(2, 4, 3, 3, dtype=torch.float64)})
        optimizer = torch.optim.Adam([slope], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            self.distance(policy, teacher, rollout, latents).mean().backward()
            optimizer.step()
        assert (slope - 0.7).abs().max() < 1e-3


def taught(folder: Path, weight: float = 0.5, source: str | Path = "base", **sections: Any) -> Config:
    return make_config(folder, teacher={"weight": weight, "source": str(source)}, **sections)


@pytest.fixture(scope="module")
def teacher_folder(tiny_lcm, tmp_path_factory):
    return build_teacher(tmp_path_factory.mktemp("teacher") / "teacher", tiny_lcm)


@pytest.fixture(scope="module")
def drawn(tiny_lcm, tmp_path_factory):
    """A rollout with final latents, and the model a little away from the policy that drew it."""
    config = make_config(tiny_lcm, objective={"kind": "nft"}, sample={"group_size": 2})
    run, model = prepare(tmp_path_factory.mktemp("taught") / "run", config)
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    shake_lora(model)
    model.adapter_digest = None
    return model, rollout


def take_gradient(model: LatentModel) -> Tensor:
    parameters = list(lora_parameters(model).values())
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return gradient


def learner_of(
    drawn: tuple[LatentModel, Rollout], config: Config, pipeline: LatentModel | None = None, **changes: Any
) -> Learner:
    model, rollout = drawn
    teacher = choose_teacher(config, model, rollout, pipeline)
    old = {name: weights.detach() * 0.5 for name, weights in lora_parameters(model).items()}
    weights = torch.linspace(0, 1, SAMPLES)
    return Learner(model, rollout, weights, config, old_weights=old, teacher=teacher, **changes)


EVERYTHING = Minibatch(torch.arange(SAMPLES), torch.arange(ACTIONS).expand(SAMPLES, -1))


@pytest.mark.parametrize("source", ["base", "pipeline"])
@pytest.mark.parametrize("kind", ["ppo", "nft"])
def test_it_is_added_to_the_gradient_of_the_objective(tiny_lcm, teacher_folder, drawn, kind, source):
    model, rollout = drawn
    pipeline = load_tiny(teacher_folder) if source == "pipeline" else None
    place = teacher_folder if source == "pipeline" else "base"
    objective, sections = OBJECTIVES[kind], {"objective": {"kind": kind}, "sample": {"group_size": 2}}
    objective.accumulate(learner_of(drawn, make_config(tiny_lcm, **sections)), EVERYTHING)
    alone = take_gradient(model)
    config = taught(tiny_lcm, 0.3, place, **sections)
    metrics = objective.accumulate(learner_of(drawn, config, pipeline), EVERYTHING).values
    found = take_gradient(model) - alone

    # The same states one by one: of a policy gradient those that were stored, of nft those that it noises.
    alpha_bar = model.alphas_cumprod
    states, calls, samples = states_of(drawn, kind)
    total = torch.zeros(())
    for state, call, sample in zip(states, calls, samples, strict=True):
        time = rollout.schedule.timesteps[call]
        row = int(rollout.conditioning_index[sample])
        own_tables = {name: table[row : row + 1] for name, table in rollout.conditioning.items()}
        own = model.predict(state[None], time[None], own_tables, 4.0)
        with torch.no_grad():
            if pipeline is None:
                with model.trained.base_model(model):
                    asked = model.predict(state[None], time[None], own_tables, 4.0)
            else:
                tables = pipeline.encode_prompts([rollout.prompts[sample]])
                asked = pipeline.predict(state[None], time[None], tables, 4.0)
        factor = ((1 - alpha_bar[time]) / alpha_bar[time]).sqrt()
        total = total + (factor * (own - asked)).square().mean() / len(calls)
    assert metrics["teacher_distance"] == pytest.approx(total.item(), rel=1e-3)
    (0.3 * total).backward()
    expected = take_gradient(model)
    assert (found - expected).norm() < 1e-3 * expected.norm()


def states_of(drawn: tuple[LatentModel, Rollout], kind: str) -> tuple[list[Tensor], list[int], list[int]]:
    from rlcm_cli.learning.renoising import draw_calls, noise_again

    model, rollout = drawn
    if kind == "ppo":
        pairs = [(sample, call) for sample in range(SAMPLES) for call in range(ACTIONS)]
        states = [rollout.trajectories.latents_BSCHW[sample, call] for sample, call in pairs]
        return states, [call for _, call in pairs], [sample for sample, _ in pairs]
    chosen = draw_calls(rollout, 0, torch.arange(SAMPLES), 4)
    samples, calls = torch.arange(SAMPLES).repeat(4), chosen.T.flatten()
    noised = noise_again(model, rollout, 0, samples, calls, samples)
    return list(noised.latents_NCHW), calls.tolist(), samples.tolist()


@pytest.mark.parametrize("kind", ["ppo", "rebel", "awm"])
def test_neither_micro_batches_nor_processes_change_it(tiny_lcm, drawn, kind):
    model, _ = drawn
    config = taught(tiny_lcm, objective={"kind": kind}, sample={"group_size": 2})
    whole = OBJECTIVES[kind].accumulate(learner_of(drawn, config), EVERYTHING).values
    expected = take_gradient(model)
    small = override_config(config, flags={"runtime.micro_batch_size": 5})
    parts = OBJECTIVES[kind].accumulate(learner_of(drawn, small), EVERYTHING).values
    found = take_gradient(model)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert parts["teacher_distance"] == pytest.approx(whole["teacher_distance"], rel=1e-4)
    if kind == "rebel":  # its pairs are weighed by all processes together
        return
    for rank in range(3):
        OBJECTIVES[kind].accumulate(learner_of(drawn, config, processes=Processes(rank, 3)), EVERYTHING)
    summed = take_gradient(model)
    assert (summed - expected).norm() < 1e-4 * expected.norm()


def test_at_the_last_call_it_is_beside_the_gradient_of_a_reward(tiny_lcm, drawn):
    model, rollout = drawn
    config = taught(tiny_lcm, 0.3, last_step={"mode": "backprop"})
    config = config.model_copy(update={"rewards": {"brightness": 1.0}})
    learner = learner_of(drawn, config)
    metrics = accumulate_last_distance(learner, torch.arange(SAMPLES))
    found = take_gradient(model)
    states, time = rollout.trajectories.latents_BSCHW[:, -1], rollout.schedule.timesteps[-1:]
    tables = {name: table[rollout.conditioning_index] for name, table in rollout.conditioning.items()}
    own = model.predict(states, time.expand(SAMPLES), tables, 4.0)
    with torch.no_grad(), model.trained.base_model(model):
        base = model.predict(states, time.expand(SAMPLES), tables, 4.0)
    level = model.alphas_cumprod[time]
    distance = ((1 - level) / level).squeeze() * (own - base).square().mean()
    assert metrics["last_teacher_distance"].item() == pytest.approx(distance.item(), rel=1e-4)
    (0.3 * distance).backward()
    expected = take_gradient(model)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    for rank in range(3):
        accumulate_last_distance(dataclasses.replace(learner, processes=Processes(rank, 3)), torch.arange(SAMPLES))
    assert (take_gradient(model) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("kind", ["ppo", "rebel", "nft"])
def test_the_forwards_that_are_counted_are_those_that_are_made(tiny_lcm, drawn, kind, monkeypatch):
    model, _ = drawn
    config = taught(tiny_lcm, objective={"kind": kind}, sample={"group_size": 2})
    asked, predict = [], model.predict

    def counted(latents, *given, **named):
        # A pass with a gradient counts as three: itself, and its backward pass as two.
        asked.append(len(latents) * (3 if torch.is_grad_enabled() else 1))
        return predict(latents, *given, **named)

    monkeypatch.setattr(model, "predict", counted)
    OBJECTIVES[kind].accumulate(learner_of(drawn, config), EVERYTHING)
    take_gradient(model)
    assert sum(asked) == SAMPLES * OBJECTIVES[kind].forwards(config, ACTIONS)


class TestRuns:
    def test_it_resumes_to_the_byte(self, tiny_lcm, teacher_folder, tmp_path):
        config = taught(tiny_lcm, 0.2, teacher_folder)
        straight = make_loop(tmp_path / "straight", config)
        first = override_config(config, flags={"runtime.iterations": 1})
        for part in (first, config):
            run, model = start_run(tmp_path / "resumed", part)
            finish(loop(run, model, load_scorers(run)))
        one, other = (fingerprint(root) for root in (straight.layout.root, tmp_path / "resumed"))
        same = {name for name in one if name.startswith(("checkpoints", "rollouts", "metrics/"))}
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        rows = read_metrics(straight.layout)
        assert all(row.measured["teacher_distance"] > 0 for row in rows)

    def test_another_teacher_is_not_taken_for_the_same(self, tiny_lcm, teacher_folder, tmp_path):
        folder = shutil.copytree(teacher_folder, tmp_path / "teacher")
        config = taught(tiny_lcm, 0.2, folder)
        run = make_loop(tmp_path / "run", config.model_copy(deep=True))
        assert read_trainer_state(run.layout, 0).teacher_digest is None
        assert read_trainer_state(run.layout, 2).teacher_digest
        edit_json(Path(folder) / "scheduler/scheduler_config.json", beta_end=0.0121)
        longer = override_config(config, flags={"runtime.iterations": 3})
        again, model = start_run(tmp_path / "run", longer)
        with pytest.raises(ForeignFileError, match=r"000002: was taught by another pipeline than teacher\.source"):
            finish(loop(again, model, load_scorers(again)))

    def test_it_keeps_the_policy_near_the_base(self, tiny_lcm, tmp_path):
        """Of a strong term alone, the known optimum is the base model: what a rate of its own has moved comes back."""
        distances = {}
        for weight in (1e-6, 100.0):
            config = taught(tiny_lcm, weight, train={"learning_rate": 3e-3, "minibatch_size": 4, "inner_epochs": 3})
            run = make_loop(tmp_path / str(weight), config)
            distances[weight] = read_metrics(run.layout)[-1].measured["teacher_distance"]
        assert distances[100.0] < 0.2 * distances[1e-6]


class TestMatching:
    def test_the_same_noise_is_asked_at_the_same_time(self, tiny_lcm, teacher_folder):
        times = torch.tensor([999, 759, 259])
        policy, teacher = load_tiny(tiny_lcm), load_tiny(teacher_folder)
        assert match_times(policy, teacher, times) is times

    def test_of_another_schedule_at_the_time_with_as_much(self, tiny_lcm, teacher_folder, tmp_path):
        folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
        edit_json(folder / "scheduler/scheduler_config.json", beta_end=0.02)
        times, policy, teacher = torch.tensor([759, 499, 259]), load_tiny(tiny_lcm), load_tiny(folder)
        found = match_times(policy, teacher, times)
        assert (found < times).all()
        lower = found.floor().long()
        levels = teacher.alphas_cumprod.double()
        between = levels[lower] + (found - lower) * (levels[lower + 1] - levels[lower])
        assert (between / policy.alphas_cumprod.double()[times] - 1).abs().max() < 1e-5

    def test_flow_matching_teaches_a_consistency_model_on_the_circle(self):
        policy, teacher = (load_model(name, revision=None, dtype="float32", device="cpu") for name in FLOW_PAIR)
        times = torch.tensor([1.0, 0.75, 0.25])
        assert find_misfit(policy, teacher, times) is None
        found = match_times(policy, teacher, times)
        assert found.tolist() == [1000, 750, 250]
        assert all(map(torch.equal, find_noise_levels(policy, times), find_noise_levels(teacher, found)))
        # The same picture with little noise: both see what it is.
        picture = policy.encode_images(torch.linspace(0, 255, 96).expand(1, 3, 96, 96).to(torch.uint8))
        latents = 0.95 * picture + 0.05 * torch.randn(picture.shape, generator=seed_generator(0))
        images = []
        with torch.no_grad():
            for model, time in ((policy, torch.tensor([0.05])), (teacher, torch.tensor([50.0]))):
                output = model.predict(latents, time, model.encode_prompts(["a cat"]), 1.0)
                images.append(predict_image(model, latents, time, output))
        assert all((image - picture).square().mean() < 0.1 * picture.square().mean() for image in images)

    def test_noise_that_it_never_saw_is_refused(self, tiny_lcm, teacher_folder, tmp_path):
        folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
        edit_json(folder / "scheduler/scheduler_config.json", beta_end=0.005)
        fault = find_misfit(load_tiny(tiny_lcm), load_tiny(folder), torch.tensor([999, 259]))
        assert fault is not None
        assert fault.startswith("was trained with noise levels (ᾱ) from 0.0")


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            (
                {"source": "emoji-diffusion"},
                r"\[teacher\] has no effect while teacher.weight and matching.weight are 0",
            ),
            ({"guidance_scale": 3.0}, r"\[teacher\] has no effect while teacher.weight and matching.weight are 0"),
            ({"weight": 1.0, "revision": "main"}, "teacher.revision is of a hub id, and teacher.source is base"),
        ],
    )
    def test_settings_without_effect(self, tiny_lcm, settings, line):
        with pytest.raises(ConfigError, match=line):
            make_config(tiny_lcm, teacher=settings)

    @pytest.mark.parametrize("runtime", [{"offload": True}, {"memory_budget": "8GB"}, {"shard_weights": True}])
    def test_a_second_pipeline_where_there_is_no_room_for_one(self, tiny_lcm, runtime):
        with pytest.raises(ConfigError, match=r"teacher.source emoji-diffusion is a second pipeline, .* runtime\."):
            taught(tiny_lcm, source="emoji-diffusion", runtime=runtime)

    def test_latents_of_another_shape(self, tiny_lcm):
        config = taught(tiny_lcm, source="emoji-diffusion")
        with pytest.raises(
            ConfigError, match=r"emoji-diffusion: has latents of .* the model that is trained 4 x 8 x 8"
        ):
            find_teacher(config, load_policy_model(config), ["a cat"])

    def test_latents_that_mean_something_else(self, tiny_lcm, teacher_folder, tmp_path):
        folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
        policy, teacher = load_tiny(tiny_lcm), load_tiny(folder)
        assert find_misfit(policy, teacher, torch.tensor([999])) is None
        with torch.no_grad():
            for weights in teacher.pipeline.vae.decoder.parameters():
                weights.copy_(weights.flip(0))
            teacher.pipeline.vae.decoder.layers[-1].bias += 2
        assert "autoencoder" in (find_misfit(policy, teacher, torch.tensor([999])) or "")

    def test_flow_matching_beside_diffusion(self, tiny_lcm, teacher_folder):
        policy, teacher = load_tiny(tiny_lcm), load_tiny(teacher_folder)
        flow = dataclasses.replace(teacher.sampler, levels="sigma")
        fault = find_misfit(policy, dataclasses.replace(teacher, sampler=flow), torch.tensor([999]))
        assert fault == "has noise levels of another kind (sigma) than the model that is trained (alpha_bar)"
