"""What every objective must be, by being listed: the gradient of its whole step is that of its definition.

The definitions below are written out plainly, for all samples of an iteration at once, and differentiated by torch.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from package_copy import PACKAGE, extend_program
from phase_runs import finish, make_config, prepare
from torch import Tensor

from rlcm_cli.config import Config, override_config
from rlcm_cli.core.gaussian import take_action
from rlcm_cli.core.noise import derive_seed, seed_generator
from rlcm_cli.core.trajectory import Trajectories
from rlcm_cli.discovery import list_kinds
from rlcm_cli.learning.learner import LARGEST, Learner
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.learning.update import weigh_samples
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.models.weights import clone_weights, exchanged_weights
from rlcm_cli.objectives import OBJECTIVES, Need
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.train import train
from rlcm_cli.store.checkpoint import read_trainer_state

SAMPLES, ACTIONS, STEPS = 8, 3, 4
ADVANTAGES = torch.tensor([-3.0, 0.5, 1.0, -0.2, 2.5, -1.0, 0.1, 1.5])
CLIP = 2.0
"""Of advantages, which two of them are beyond."""
ORDER = torch.tensor([6, 7, 2, 3, 0, 1, 4, 5])
"""Of the samples in the optimizer step: groups of two stay together."""


@dataclasses.dataclass
class Scored:
    """All stored actions of an iteration under two policies, each [B, A]."""

    log_probs: Tensor
    old: Tensor
    """Log-probabilities of the policy that drew."""
    base: Tensor
    """Those of the base model."""
    means: Tensor
    """[B, A, C, H, W]."""
    old_means: Tensor
    actions: Tensor
    std: Tensor
    """[A]."""
    gains: Tensor
    """|b|, [A]."""

    @property
    def kl(self) -> Tensor:
        return ((self.means - self.old_means).flatten(2) ** 2).mean(2) / (2 * self.std**2)


def define_clipped_ratio(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    ratio, weights = (scored.log_probs - scored.old).exp(), advantages.clamp(-CLIP, CLIP)[:, None]
    nearest = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    return -torch.minimum(weights * ratio, weights * nearest).mean()


def define_dppo(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    ratio, weights = (scored.log_probs - scored.old).exp(), advantages.clamp(-CLIP, CLIP)[:, None].expand(-1, ACTIONS)
    far = scored.kl.detach() >= settings.max_kl
    outward = ((weights > 0) & (ratio > 1)) | ((weights < 0) & (ratio < 1))
    assert all(part.any() for part in (far & outward, far & ~outward, ~far & outward)), scored.kl
    return (-weights * ratio)[~(far & outward)].sum() / ratio.numel()


def define_guard(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    # The difference of log-probabilities, without what its rounding adds.
    noise = (scored.actions - scored.old_means).flatten(2)
    shift = (scored.means - scored.old_means).flatten(2)
    log_ratio = (noise * shift).mean(2) / scored.std**2 - scored.kl
    torch.testing.assert_close(log_ratio, scored.log_probs - scored.old, rtol=0, atol=2e-6)
    ratio, weights = ((log_ratio + scored.kl) * scored.std).exp(), advantages.clamp(-CLIP, CLIP)[:, None]
    nearest = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    assert 0 < (ratio != nearest).sum() < ratio.numel(), "the clip acts"
    return -(torch.minimum(weights * ratio, weights * nearest) / scored.gains).mean()


def define_reinforce(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    return -(advantages.clamp(-CLIP, CLIP)[:, None] * scored.log_probs).mean()


def define_rebel(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    ratios, rewards = (scored.log_probs - scored.old).sum(1), advantages.clamp(-CLIP, CLIP)
    errors = [
        settings.rebel_lr * (ratios[one] - ratios[one + 1]) - (rewards[one] - rewards[one + 1])
        for one in range(0, SAMPLES, 2)
    ]
    return torch.stack(errors).square().mean()


def define_rwr(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    weights = (settings.beta * advantages.clamp(-CLIP, CLIP)).exp()
    return -(weights / weights.sum() * scored.log_probs.mean(1)).sum()


def define_rwr_sparse(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    best = sorted(range(SAMPLES), key=lambda sample: -advantages[sample])[: round(settings.share * SAMPLES)]
    return -scored.log_probs[best].mean()


@dataclasses.dataclass(frozen=True)
class NoisedImage:
    """The final latents of a sample with noise, and what is predicted of them, [C, h, w]."""

    new: Tensor
    old: Tensor
    base: Tensor
    noise: Tensor
    level: Tensor
    """√(1 − ᾱ) / (√ᾱ + √(1 − ᾱ))."""


def noise_image(moved: Moved, sample: int, call: int, owner: int) -> NoisedImage:
    """Noise a sample at the time of a model call, with the noise that belongs to another, or to itself."""
    model, rollout = moved.model, moved.rollout
    timestep = rollout.schedule.timesteps[call]
    alpha_bar = model.alphas_cumprod[timestep]
    seed = derive_seed(rollout.manifest.run_seed, "fresh noise", rollout.manifest.iteration, 0, owner, call)
    noise = torch.randn(model.latent_shape, generator=seed_generator(seed))
    noised = alpha_bar.sqrt() * rollout.final_latents[sample] + (1 - alpha_bar).sqrt() * noise
    row = int(rollout.conditioning_index[sample])
    conditioning = {name: table[row : row + 1] for name, table in rollout.conditioning.items()}
    guidance = rollout.manifest.schedule.guidance_scale

    def predict() -> Tensor:
        return model.predict(noised[None], timestep[None], conditioning, guidance)[0]

    with torch.no_grad(), exchanged_weights(lora_parameters(model), moved.old_weights):
        old = predict()
    with torch.no_grad(), model.trained.base_model(model):
        base = predict()
    level = (1 - alpha_bar).sqrt() / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt())
    return NoisedImage(predict(), old, base, noise, level)


def choose_calls(moved: Moved, sample: int, times: int) -> list[int]:
    manifest = moved.rollout.manifest
    seed = derive_seed(manifest.run_seed, "noise times", manifest.iteration, 0, sample)
    return torch.randperm(STEPS, generator=seed_generator(seed))[:times].tolist()


def define_nft(moved: Moved, advantages: Tensor, settings: Any) -> Tensor:
    losses = []
    for sample in range(SAMPLES):
        good = min(1, max(0, 0.5 + 0.5 * advantages[sample].item() / settings.advantage_range))
        for call in choose_calls(moved, sample, settings.times):
            image = noise_image(moved, sample, call, sample)
            towards = settings.beta * image.new + (1 - settings.beta) * image.old
            away = (1 + settings.beta) * image.old - settings.beta * image.new
            for share, prediction in ((good, towards), (1 - good, away)):
                error = image.level * (prediction - image.noise)
                losses.append(share * error.square().mean() / error.detach().abs().mean() / settings.beta)
    return settings.advantage_range * torch.stack(losses).sum() / (SAMPLES * settings.times)


def define_awm(moved: Moved, advantages: Tensor, settings: Any) -> Tensor:
    losses = []
    for sample in range(SAMPLES):
        weight = advantages[sample].clamp(-CLIP, CLIP)
        for call in choose_calls(moved, sample, settings.times):
            image = noise_image(moved, sample, call, sample)
            new, old = (
                -(image.level**settings.level_power) * (prediction - image.noise).square().mean() ** settings.power
                for prediction in (image.new, image.old)
            )
            ratio = ((new - old) / settings.power).exp()
            nearest = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
            losses.append(-torch.minimum(weight * ratio, weight * nearest))
    return torch.stack(losses).mean()


def define_dpo(moved: Moved, advantages: Tensor, settings: Any) -> Tensor:
    losses = []
    for first in range(0, SAMPLES, 2):
        better, worse = (first, first + 1) if advantages[first] > advantages[first + 1] else (first + 1, first)
        for call in choose_calls(moved, first, settings.times):
            images = [noise_image(moved, sample, call, first) for sample in (better, worse)]
            gains = [
                (image.new - image.noise).square().mean() - (image.base - image.noise).square().mean()
                for image in images
            ]
            losses.append(-(-settings.beta / 2 * (gains[0] - gains[1])).sigmoid().log())
    return torch.stack(losses).mean()


ImageDefinition = Callable[["Moved", Tensor, Any], Tensor]
"""(what has moved, advantages [B], the objective's settings) → the loss of an iteration."""

IMAGE_DEFINITIONS: dict[str, tuple[ImageDefinition, dict[str, Any]]] = {
    "nft": (define_nft, {"beta": 0.4, "advantage_range": 2.0, "times": 2}),
    "awm": (define_awm, {"clip_range": 3e-4, "power": 0.5, "level_power": 2.0, "times": 2}),
    "dpo": (define_dpo, {"beta": 20.0, "times": 2}),
}
"""The same of objectives that look at the images only."""


def define_pso(scored: Scored, advantages: Tensor, settings: Any) -> Tensor:
    low, high = math.log(1 - settings.clip_range), math.log(1 + settings.clip_range)
    by_action = scored.log_probs - scored.base
    assert 0 < ((by_action < low) | (by_action > high)).sum() < by_action.numel(), "the clip acts"
    ratios, losses = by_action.clamp(low, high).sum(1), []
    for first in range(0, SAMPLES, 2):
        sign = 1 if advantages[first] > advantages[first + 1] else -1
        losses.append(-(settings.beta * sign * (ratios[first] - ratios[first + 1])).sigmoid().log())
    return torch.stack(losses).mean()


Definition = Callable[[Scored, Tensor, Any], Tensor]
"""(the stored actions, advantages [B], the objective's settings) → the loss of an iteration."""

DEFINITIONS: dict[str, tuple[Definition, dict[str, Any]]] = {
    "ppo": (define_clipped_ratio, {"clip_range": 3e-4}),
    "grpo": (define_clipped_ratio, {"clip_range": 3e-4}),
    "dppo": (define_dppo, {"max_kl": 3e-3}),
    "grpo-guard": (define_guard, {"clip_range": 3e-3}),
    "reinforce": (define_reinforce, {}),
    "rebel": (define_rebel, {"rebel_lr": 10.0}),
    "rwr": (define_rwr, {"beta": 0.7}),
    "rwr-sparse": (define_rwr_sparse, {"share": 0.25}),
    "pso": (define_pso, {"beta": 50.0, "clip_range": 3e-3}),
}
"""Kind → its definition, and settings with which all of it acts."""


def configure(model: Path, kind: str) -> Config:
    settings = {"kind": kind, **{**DEFINITIONS, **IMAGE_DEFINITIONS}[kind][1]}
    # Where checkpoint 0 draws for longer, the policy that trains may be another.
    sample = {"group_size": 2, "staleness": 0 if Need.OWN_SAMPLES in OBJECTIVES[kind].needs else 1}
    return make_config(model, objective=settings, sample=sample, train={"advantage_clip": CLIP})


class Moved(NamedTuple):
    """A rollout, and the model a little away from the policy that drew it."""

    model: LatentModel
    rollout: Rollout
    old_weights: dict[str, Tensor]
    """Of the policy that drew."""

    def learner(self, config: Config) -> Learner:
        weights = weigh_samples(config, ADVANTAGES)
        return Learner(self.model, self.rollout, weights, config, old_weights=self.old_weights)


@pytest.fixture(scope="module")
def moved(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Moved:
    run, model = prepare(tmp_path_factory.mktemp("objectives") / "run", configure(tiny_lcm, "nft"))  # which stores all
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    old_weights = clone_weights(lora_parameters(model))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.adapter_digest = None
    return Moved(model, rollout, old_weights)


def define_loss(moved: Moved, kind: str, settings: Any) -> Tensor:
    """Write an objective out, with a graph."""
    if kind in IMAGE_DEFINITIONS:
        return IMAGE_DEFINITIONS[kind][0](moved, ADVANTAGES, settings)
    assert kind in DEFINITIONS, f"write the definition of '{kind}' out in DEFINITIONS, with settings that make it act"
    scored = score_actions(moved)
    assert (scored.log_probs - scored.old).abs().max() > 1e-4, "the policy has moved"
    return DEFINITIONS[kind][0](scored, ADVANTAGES, settings)


def score_actions(moved: Moved) -> Scored:
    """Score all stored actions with a graph."""
    model, rollout, old_weights = moved
    log_probs, means = predict_actions(model, rollout)
    with torch.no_grad(), exchanged_weights(lora_parameters(model), old_weights):
        _, old_means = predict_actions(model, rollout)
    with torch.no_grad(), model.trained.base_model(model):
        base, _ = predict_actions(model, rollout)
    return Scored(
        log_probs,
        rollout.trajectories.log_probs_BA,
        base,
        means,
        old_means,
        rollout.trajectories.latents_BSCHW[:, 1:],
        rollout.schedule.std[:ACTIONS].float(),
        rollout.schedule.output_coef[:ACTIONS].abs().float(),
    )


def predict_actions(model: LatentModel, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, A] and means [B, A, C, H, W] of all stored actions, one model call a step."""
    states, columns, means = rollout.trajectories.latents_BSCHW, [], []
    conditioning = {name: table[rollout.conditioning_index] for name, table in rollout.conditioning.items()}
    for step in range(ACTIONS):
        timesteps = rollout.schedule.timesteps[step].expand(SAMPLES)
        output = model.predict(states[:, step], timesteps, conditioning, rollout.manifest.schedule.guidance_scale)
        a, b, std = (getattr(rollout.schedule, name)[step].float() for name in ("latents_coef", "output_coef", "std"))
        mean = a * states[:, step] + b * output
        means.append(mean)
        columns.append(take_action(mean, std.view(1, 1, 1, 1), action=states[:, step + 1], reduction="mean")[1])
    return torch.stack(columns, dim=1), torch.stack(means, dim=1)


def take_gradient(model: LatentModel) -> Tensor:
    parameters = list(lora_parameters(model).values())
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return gradient


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_gradient_of_the_step_is_that_of_the_definition(tiny_lcm, moved, kind):
    model, objective, config = moved.model, OBJECTIVES[kind], configure(tiny_lcm, kind)
    loss = define_loss(moved, kind, config.objective)
    loss.backward()
    expected = take_gradient(model)
    assert expected.abs().max() > 0

    minibatch = Minibatch(ORDER, torch.arange(ACTIONS).expand(SAMPLES, -1))
    metrics = {}
    for size in (SAMPLES * ACTIONS, 7, 1):
        sized = override_config(config, flags={"runtime.micro_batch_size": size})
        metrics[size] = objective.accumulate(moved.learner(sized), minibatch).values
        found = take_gradient(model)
        assert (found - expected).norm() < 1e-4 * expected.norm(), size
        assert metrics[size]["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-7)
        assert metrics[size] == pytest.approx(metrics[SAMPLES * ACTIONS], rel=1e-3, abs=1e-6)
    assert set(metrics[1]) == {metric.name for metric in objective.metrics}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_kl_penalty_is_independent_of_the_micro_batch(tiny_lcm, moved, kind):
    minibatch, gradients = Minibatch(ORDER, torch.arange(ACTIONS).expand(SAMPLES, -1)), []
    for size in (SAMPLES * ACTIONS, 7):
        flags = {"runtime.micro_batch_size": size, "train.kl_weight": 0.3}
        config = override_config(configure(tiny_lcm, kind), flags=flags)
        assert OBJECTIVES[kind].accumulate(moved.learner(config), minibatch).values["kl_to_base"] > 0
        gradients.append(take_gradient(moved.model))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


WEIGHED = [
    kind
    for kind, objective in OBJECTIVES.items()
    if Need.ACTIONS in objective.needs and Need.TRAJECTORY_PAIRS not in objective.needs
]


@pytest.mark.parametrize("kind", WEIGHED)
@pytest.mark.parametrize(("weighing", "power"), [("noise", 1), ("variance", 2)])
def test_the_weight_of_a_step_is_a_factor_of_its_gradient(tiny_lcm, moved, kind, weighing, power):
    config, objective = configure(tiny_lcm, kind), OBJECTIVES[kind]
    std = moved.rollout.schedule.std[:ACTIONS].float()
    expected = torch.zeros(())
    for step, weight in enumerate(std**power / (std**power).mean()):
        objective.accumulate(moved.learner(config), Minibatch(ORDER, torch.full((SAMPLES, 1), step)))
        expected = expected + weight * take_gradient(moved.model) / ACTIONS
    weighed = override_config(config, flags={"train.step_weights": weighing})
    objective.accumulate(moved.learner(weighed), Minibatch(ORDER, torch.arange(ACTIONS).expand(SAMPLES, -1)))
    found = take_gradient(moved.model)
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_forwards_that_it_counts_are_those_that_it_makes(tiny_lcm, moved, kind, monkeypatch):
    model, config = moved.model, configure(tiny_lcm, kind)
    asked, predict = [], model.predict

    def counted(latents, *given, **named):
        # A pass with a gradient counts as three: itself, and its backward pass as two.
        asked.append(len(latents) * (3 if torch.is_grad_enabled() else 1))
        return predict(latents, *given, **named)

    monkeypatch.setattr(model, "predict", counted)
    OBJECTIVES[kind].accumulate(moved.learner(config), Minibatch(ORDER, torch.arange(ACTIONS).expand(SAMPLES, -1)))
    take_gradient(model)
    assert sum(asked) == SAMPLES * OBJECTIVES[kind].forwards(config, ACTIONS)


@pytest.mark.parametrize("kind", [kind for kind, one in OBJECTIVES.items() if Need.ACTIONS in one.needs])
def test_trajectories_without_actions_have_no_gradient(tiny_lcm, moved, kind):
    model, rollout, _ = moved
    drawn = rollout.trajectories
    short = Trajectories(
        drawn.latents_BSCHW[:, :1], torch.zeros(SAMPLES, 0), drawn.timesteps_A2[:0], drawn.calls_A[:0]
    )
    config = configure(tiny_lcm, kind)
    learner = Learner(
        model, dataclasses.replace(rollout, trajectories=short), weigh_samples(config, ADVANTAGES), config
    )
    none = Minibatch(ORDER, torch.empty(SAMPLES, 0, dtype=torch.int64))
    assert OBJECTIVES[kind].accumulate(learner, none).values == {LARGEST: 0.0}
    assert all(parameter.grad is None for parameter in lora_parameters(model).values())
    assert OBJECTIVES[kind].forwards(config, 0) == 0


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_its_needs_and_its_advantages_are_known(kind):
    objective = OBJECTIVES[kind]
    assert objective.needs <= {*Need}
    assert objective.advantages.admitted
    assert objective.settings.__doc__


def test_no_objective_needs_torch_to_be_listed():
    code = "import sys; import rlcm_cli.objectives; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_kind_is_compared_outside_its_folder():
    """Messages may name an objective as advice; code that compares one belongs to its record."""
    kinds = list_kinds([str(PACKAGE / "objectives")])
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name == "objectives":
            continue
        text = file.read_text()
        for kind in kinds:
            for form in (f'== "{kind}"', f'!= "{kind}"', f'case "{kind}"', f'"{kind}":', f'("{kind}"', f'"{kind}",'):
                assert form not in text, f"{file.relative_to(PACKAGE)}: {form}"


NEW = '''
"""Imitation: the likelihood of everything that was drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import Need, Objective
from rlcm_cli.objectives._policy_gradient import METRICS, accumulate_loss, count_forwards
from rlcm_cli.sections import PositiveFloat, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class ImitationSettings(Section):
    """Imitation of whatever was drawn."""

    kind: Literal["imitation-like"] = "imitation-like"
    strength: PositiveFloat = 1.0


def weigh(settings: ImitationSettings, advantages: Tensor) -> Tensor:
    return settings.strength + 0 * advantages


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    from rlcm_cli.core.objectives import reinforce

    return accumulate_loss(learner, minibatch, reinforce)


OBJECTIVE = Objective(
    settings=ImitationSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=METRICS,
    needs=frozenset({Need.ACTIONS}),
    weigh=weigh,
)
'''


def test_a_new_objective_is_one_file(tmp_path):
    rlcm = extend_program(tmp_path / "copy", {"objectives/imitation_like.py": NEW})
    told = rlcm("loop", "--help")
    assert "imitation-like" in "".join(told.split())
    options = ["--samples", "4", "--iterations", "1", "--steps", "2", "--device", "cpu", "--quiet"]
    few = ["--set", "evaluate.prompts=1", "--set", "evaluate.images_per_prompt=1"]
    run = tmp_path / "run"
    chosen = ["--objective", "imitation-like", "--set", "objective.strength=2"]
    rlcm("loop", "--task", "compression", "--run", run, *chosen, *options, *few)
    config = (run / "config.json").read_text()
    assert '"imitation-like"' in config
    assert (run / "checkpoints" / "000001").is_dir()


def test_an_iteration_trains_with_each(tiny_lcm, tmp_path):
    for kind in OBJECTIVES:
        run, model = prepare(tmp_path / kind, configure(tiny_lcm, kind))
        measured = finish(train(run, model))[-1].metrics.measured
        assert measured["grad_norm"] > 0
        assert {metric.name for metric in OBJECTIVES[kind].metrics} <= set(measured)
