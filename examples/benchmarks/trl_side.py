"""TRL's DDPOTrainer as `against_trl.py` runs it, in an environment of its own; rlcm is not imported here.

    PYTHON trl_side.py '{"model": "FOLDER", …}'

Loads the model and writes a line, `{}`; then for each line on standard input does an epoch and writes its costs as a
line of JSON: phase → [seconds of processor time, seconds on the clock].
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import warnings
from io import BytesIO
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image

# DDPOTrainer warns that later versions lack it; TRL's dataclasses take the script's name without ".py".
warnings.simplefilter("ignore")

from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline  # noqa: E402

Clock = tuple[float, float]


def now() -> Clock:
    """Read the processor's clock and the one on the wall."""
    return time.process_time(), time.perf_counter()


def score_jpeg(images: torch.Tensor, prompts: tuple[str], metadata: tuple[Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Give the negative kilobytes of the JPEG, as DDPO's reward: images float [B, 3, H, W] in 0 … 1."""
    sizes = []
    for pixels in (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=95)
        sizes.append(-file.tell() / 1000)
    return torch.tensor(sizes), {}


class TimedTrainer(DDPOTrainer):
    """The trainer, and when it went from sampling to scoring to training."""

    def _generate_samples(self, iterations: int, batch_size: int) -> Any:
        samples = super()._generate_samples(iterations, batch_size)
        self.sampled = now()
        return samples

    def compute_rewards(self, prompt_image_pairs: Any, is_async: bool = False) -> Any:  # noqa: D102
        rewards = super().compute_rewards(prompt_image_pairs, is_async)
        self.scored = now()
        return rewards

    def time_epoch(self, epoch: int) -> dict[str, Clock]:
        """Draw, score and train an epoch: phase → its cost."""
        moments = [now()]
        self.step(epoch, epoch)
        moments += [self.sampled, self.scored, now()]
        return {
            phase: (moments[index + 1][0] - moments[index][0], moments[index + 1][1] - moments[index][1])
            for index, phase in enumerate(("sample", "score", "train"))
        }


def make_trainer(asked: dict[str, Any]) -> TimedTrainer:
    """Make the trainer; all that is not asked for is as TRL has it, but for saving."""
    PartialState(cpu=True)  # TRL logs before it makes its own
    config = DDPOConfig(
        mixed_precision="no",
        accelerator_kwargs={"cpu": True},
        save_freq=10**9,  # no checkpoints: rlcm's are counted, TRL's are not
        sample_num_steps=asked["steps"],
        sample_guidance_scale=asked["guidance_scale"],
        sample_batch_size=asked["sample_batch"],
        sample_num_batches_per_epoch=asked["images"] // asked["sample_batch"],
        train_batch_size=asked["train_batch"],
        train_gradient_accumulation_steps=asked["update_batch"] // asked["train_batch"],
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_buffer_size=32,
    )
    prompts = random.Random(0)
    return TimedTrainer(
        config,
        score_jpeg,
        lambda: (prompts.choice(asked["prompts"]), {}),
        DefaultDDPOStableDiffusionPipeline(asked["model"]),
    )


def main() -> None:
    """Answer line by line."""
    # Libraries may print: what they write goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trainer = make_trainer(json.loads(sys.argv[1]))
    print("{}", file=answers, flush=True)
    for epoch, _ in enumerate(sys.stdin):
        print(json.dumps(trainer.time_epoch(epoch)), file=answers, flush=True)


if __name__ == "__main__":
    main()
