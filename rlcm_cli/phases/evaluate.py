"""Draw the same held-out seeds with a checkpoint, on training prompts and on prompts kept out of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from rlcm_cli.config import Config
from rlcm_cli.core.noise import derive_seed
from rlcm_cli.errors import ForeignFileError
from rlcm_cli.models.lcm import ConsistencyModel
from rlcm_cli.phases.events import Advanced, Evaluated, Event, PhaseStarted
from rlcm_cli.phases.policy import load_checkpoint
from rlcm_cli.phases.run import Run, prompt_sets
from rlcm_cli.phases.sample import REDUCTION, draw_batch, model_schedule
from rlcm_cli.phases.score import combine_rewards
from rlcm_cli.prompts import draw_prompts
from rlcm_cli.rewards import RewardFn, score_images
from rlcm_cli.store.evaluations import Evaluation, publish_evaluation, read_evaluation
from rlcm_cli.store.shards import REMEDY, is_published


def evaluate(run: Run, model: ConsistencyModel, rewards: Mapping[str, RewardFn], checkpoint: int) -> Iterator[Event]:
    """Draw and score the fixed images with a checkpoint, unless that was done.

    Raises `ForeignFileError` where the evaluation that is there is of another policy.
    """
    layout, config = run.layout, run.config
    state = load_checkpoint(run, model, checkpoint)
    if not is_published(layout.evaluation(checkpoint)):
        plan = plan_evaluation(config)
        total = len(plan)
        yield PhaseStarted("evaluate", checkpoint, total, "images")
        schedule = model_schedule(config, model)
        images = []
        for first in range(0, total, config.sample.batch_size):
            part = plan[first : first + config.sample.batch_size]
            drawn = draw_batch(
                model,
                schedule,
                [prompt for prompt, _, _ in part],
                [seed for _, seed, _ in part],
                guidance_scale=config.sample.guidance_scale,
                reduction=REDUCTION,
            )
            images.append(drawn.images)
            yield Advanced(len(part))
        pictures = torch.cat(images)
        prompts = [prompt for prompt, _, _ in plan]
        metadata = [{"evaluation": checkpoint, "seed": seed} for _, seed, _ in plan]
        publish_evaluation(
            layout,
            Evaluation(
                checkpoint=checkpoint,
                policy_digest=state.policy_digest,
                images=pictures,
                prompts=prompts,
                seed=torch.tensor([seed for _, seed, _ in plan]),
                held_out=torch.tensor([held_out for _, _, held_out in plan]),
                rewards={
                    name: score_images(reward, name, pictures, prompts, metadata) for name, reward in rewards.items()
                },
            ),
        )
    evaluation = read_evaluation(layout, checkpoint)
    if evaluation.policy_digest != state.policy_digest:
        path = layout.evaluation(checkpoint)
        raise ForeignFileError(f"{path}: was drawn with another policy; {REMEDY.format(path=path)}")
    yield summarise(evaluation, config)


def plan_evaluation(config: Config) -> list[tuple[str, int, bool]]:
    """List (prompt, seed, held out) of the fixed images.

    Held-out prompts come first and take at most a third of the places; training prompts fill the others.
    """
    settings = config.evaluate
    training, held_out = prompt_sets(config.prompts)
    shuffled = draw_prompts(training, config.seed, 0, len(training))
    chosen = [(prompt, True) for prompt in held_out[: settings.prompts // 3]] + [
        (prompt, False) for prompt in shuffled
    ]
    return [
        (prompt, derive_seed(config.seed, "eval", number, member), is_held_out)
        for number, (prompt, is_held_out) in enumerate(chosen[: settings.prompts])
        for member in range(settings.images_per_prompt)
    ]


def summarise(evaluation: Evaluation, config: Config) -> Evaluated:
    """Average the rewards of an evaluation over its training and its held-out prompts."""
    total = combine_rewards(evaluation.rewards, config.rewards)
    held_out = evaluation.held_out
    return Evaluated(
        checkpoint=evaluation.checkpoint,
        reward_training=total[~held_out].mean().item(),
        reward_held_out=total[held_out].mean().item() if held_out.any() else None,
        components={name: evaluation.rewards[name].mean().item() for name in config.rewards},
    )
