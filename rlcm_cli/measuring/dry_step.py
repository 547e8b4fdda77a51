"""A few transitions of a configuration, drawn and trained on by the phases' own functions, to be measured."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning.learner import LARGEST, Learner, copy_policy
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.optimizer import clip_gradient, make_optimizer, optimizer_tensors
from rlcm_cli.learning.rollout import Rollout, join_conditioning
from rlcm_cli.learning.student import Student
from rlcm_cli.learning.teacher import choose_teacher
from rlcm_cli.learning.update import IterationData, accumulate_update, weigh_samples
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.offloading import bring_denoiser
from rlcm_cli.models.weights import copy_weights
from rlcm_cli.objectives import Need, find_objective
from rlcm_cli.phases.sample import assemble_shard, draw_shard, plan_rollout
from rlcm_cli.runs.inputs import TaskPrompts, find_pairs
from rlcm_cli.runs.schedules import restore_schedule
from rlcm_cli.store.checkpoint import TrainerState


class Probe:
    """A model with its own small rollout, on which optimizer steps of any micro-batch are taken.

    They change the trained weights and leave gradients: within `undone` that is only for a while. Raises
    `ConfigError` where a differentiable reward is part of training, whose memory nothing here measures.
    """

    def __init__(self, config: Config, model: LatentModel, *, samples: int, batch_size: int, steps: int) -> None:
        if config.last_step.mode == "backprop":
            raise ConfigError(
                "last_step.mode backprop trains through the decoder and the reward, which is not measured ahead; set "
                "runtime.micro_batch_size by hand and leave the memory budget out"
            )
        self.config, self.model = config, model
        objective = find_objective(config)
        self.paired = bool({Need.TRAJECTORY_PAIRS, Need.PAIRS} & objective.needs)
        rollout = _draw(config, model, samples, batch_size, steps, group_size=2 if self.paired else 1)
        bring_denoiser(model)
        weights = weigh_samples(config, torch.linspace(-1, 1, len(rollout.trajectories)))
        # A second pipeline would not be at hand: the base model stands in for it.
        teacher = choose_teacher(config, model, rollout, None)
        learner = Learner(model, rollout, weights, config, old_weights=copy_policy(model, config), teacher=teacher)
        self.data = IterationData(objective, learner, [], find_pairs(config, model))
        self.parameters = model.trained.parameters(model)
        self.optimizer = make_optimizer(self.parameters, config.train, config.train.learning_rate)

    def ratio_drift(self, micro_batch_size: int) -> float:
        """Return the largest |ratio − 1| of the rollout replayed before any update, as training measures it."""
        trajectories = self.data.learner.rollout.trajectories
        steps = torch.arange(trajectories.actions).expand(len(trajectories), -1)
        drift = self._accumulate(Minibatch(torch.arange(len(trajectories)), steps), micro_batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        return drift

    def train_once(self) -> tuple[float, int]:
        """Take one optimizer step on all transitions as training does, one at a time.

        Returns the norm of the gradient, and how many of the trained tensors moved. Raises `TrainingError` for a
        gradient or weights that are not finite, and for weights that all stay as they were.
        """
        student = Student(self.model, self.parameters, self.optimizer, None)
        before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}
        self.optimizer.zero_grad(set_to_none=True)
        self._accumulate(self._choose(self._count_all()), 1)
        norm = student.step(self.config.train, 0)
        student.check_weights(before, 0, self.config.train.learning_rate)
        moved = [not torch.equal(before[name], weights.detach().cpu()) for name, weights in self.parameters.items()]
        return norm, sum(moved)

    def take_step(self, micro_batch_size: int) -> None:
        """Take an optimizer step on as many transitions, in one forward and backward pass.

        REBEL's pairs of whole trajectories are more; they are done in several passes of that size.
        """
        self.start_optimizer()
        self.optimizer.zero_grad(set_to_none=True)
        self._accumulate(self._choose(micro_batch_size), micro_batch_size)
        clip_gradient(self.parameters.values(), self.config.train)
        self.optimizer.step()

    def start_optimizer(self) -> None:
        """Let the optimizer have its moments, as it has in all steps of a run but the first."""
        if not self.optimizer.state:
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()

    def optimizer_tensors(self) -> list[Tensor]:
        """Return the tensors of the optimizer's state."""
        return list(optimizer_tensors(self.optimizer, self.parameters).values())

    def transitions_of(self, micro_batch_size: int) -> int:
        """Return the number of transitions of `take_step`; of samples, where these have no actions."""
        chosen = self._choose(micro_batch_size)
        return chosen.steps_MK.numel() or len(chosen.samples_M)

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Put the trained weights back after the block, and drop gradients and the optimizer's moments."""
        kept = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}
        try:
            yield
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self.optimizer.state.clear()
            copy_weights(self.parameters, kept)

    def _choose(self, count: int) -> Minibatch:
        """Take transitions of the rollout, some of them several times where it has fewer."""
        trajectories = self.data.learner.rollout.trajectories
        samples, actions = len(trajectories), trajectories.actions
        if self.paired:
            pairs = -(-count // (2 * max(1, actions)))
            return Minibatch(torch.arange(2 * pairs) % samples, torch.arange(actions).expand(2 * pairs, -1))
        rows = torch.arange(count)
        if not actions:
            return Minibatch(rows % samples, torch.empty(count, 0, dtype=torch.int64))
        return Minibatch(rows % samples, (rows // samples % actions).unsqueeze(1))

    def _count_all(self) -> int:
        trajectories = self.data.learner.rollout.trajectories
        return len(trajectories) * max(1, trajectories.actions)

    def _accumulate(self, minibatch: Minibatch, micro_batch_size: int) -> float:
        runtime = self.config.runtime.model_copy(update={"micro_batch_size": micro_batch_size})
        config = self.config.model_copy(update={"runtime": runtime})
        data = dataclasses.replace(self.data, learner=dataclasses.replace(self.data.learner, config=config))
        return accumulate_update(data, minibatch, seed=0).values.get(LARGEST, 0.0)


def _draw(config: Config, model: LatentModel, samples: int, batch_size: int, steps: int, group_size: int) -> Rollout:
    tasks = len(config.joint_tasks())
    changes = {
        "samples": group_size * max(-(-samples // group_size), tasks),
        "group_size": group_size,
        "shards": 1,
        "batch_size": batch_size,
        "steps": steps,
    }
    small = config.model_copy(update={"sample": config.sample.model_copy(update=changes)})
    # What is measured does not depend on the prompts, and a run's own are not at hand.
    prompts = {task: TaskPrompts(("a cat", "a dog"), ()) for task in config.joint_tasks()}
    policy = TrainerState(run="", number=0, optimizer_steps=0, model_digest=model.digest, policy_digest=model.digest)
    manifest = plan_rollout(small, prompts, model, policy, iteration=0)
    shard = assemble_shard(manifest, model, 0, list(draw_shard(manifest, model, 0)))
    conditioning, index = join_conditioning([shard])
    count = len(shard.trajectories)
    return Rollout(
        manifest=manifest,
        schedule=restore_schedule(manifest.schedule),
        trajectories=shard.trajectories,
        conditioning=conditioning,
        conditioning_index=index,
        groups=torch.arange(count) // group_size,
        prompts=shard.sample_prompts(),
        tasks=[manifest.tasks[manifest.task_of(sample)] for sample in range(count)],
        components={},
        revisions={},
        rewards=torch.zeros(count),
        final_latents=shard.final_latents,
    )
