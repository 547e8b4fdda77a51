"""Gradients in float16: those of float32 but for rounding, at the size of real images, whatever the loss."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_values
from diffusers import UNet2DConditionModel
from phase_runs import finish
from PIL import Image
from plain_diffusion import build_plain_diffusion

from rlcm_cli.config import Config, LastStepSettings, parse_config
from rlcm_cli.errors import TrainingError
from rlcm_cli.learning.last_step import accumulate_last_step, choose_pathwise
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.loss_scale import BACKOFFS, LossScale
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.pretraining import accumulate_pretraining
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.objectives import find_objective
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.runs.inputs import find_pairs
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import Run, create_run
from rlcm_cli.store.checkpoint import read_trainer_state
from rlcm_cli.store.metrics import read_metrics

SIDE = 128
"""Pixels; the latents are 4 x 64 x 64, as those of Stable Diffusion at 512 pixels."""


def configure(folder: Path, dtype: str = "float16", *, side: int = SIDE, **sections: Any) -> Config:
    values = tiny_values(folder, task="mine", **sections)
    model = {"name": str(folder), "dtype": dtype, "image_size": side}
    return parse_config({**values, "rewards": {"brightness": 1.0}, "model": model})


def load_moved(config: Config) -> LatentModel:
    """Load a model whose adapter acts: with B at 0, the gradient of A is 0."""
    model = load_policy_model(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def build_tall(tiny: Path, folder: Path, middle: str | None = "UNetMidBlock2DCrossAttn") -> Path:
    """Build a pipeline of the real size, whose U-Net has attention only where it is cheap: at 16 x 16."""
    shutil.copytree(tiny, folder)
    torch.manual_seed(4)
    settings = {**json.loads((folder / "unet" / "config.json").read_text()), "sample_size": SIDE // 2}
    del settings["_class_name"], settings["_diffusers_version"]
    settings |= {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": middle,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }
    UNet2DConditionModel(**settings).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def tall(tiny_lcm, tmp_path_factory) -> Path:
    return build_tall(tiny_lcm, tmp_path_factory.mktemp("models") / "tall")


@pytest.fixture(scope="module")
def drawn(tall, tmp_path_factory) -> tuple[Run, Rollout]:
    return draw_samples(tall, tmp_path_factory.mktemp("run") / "run")


def draw_samples(folder: Path, root: Path) -> tuple[Run, Rollout]:
    """Draw and score four samples of an action in float16."""
    config = configure(folder, sample={"samples": 4, "shards": 1, "steps": 2})
    run, model = create_run(root, config), load_policy_model(config)
    finish(sample(run, model))
    finish(score(run, load_scorers(run)))
    return run, read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)


def gradient(model: LatentModel) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in lora_parameters(model).values() if p.grad is not None])
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    return found.double()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def cast_to(model: LatentModel, rollout: Rollout) -> Rollout:
    """Store the same float16 values in the dtype of the model that replays them."""
    states = rollout.trajectories.latents_BSCHW.to(model.dtype)
    return dataclasses.replace(
        rollout,
        trajectories=dataclasses.replace(rollout.trajectories, latents_BSCHW=states),
        conditioning={name: table.to(model.dtype) for name, table in rollout.conditioning.items()},
    )


def policy_gradient(rollout: Rollout, config: Config, scale: float) -> torch.Tensor:
    model, count = load_moved(config), len(rollout.prompts)
    every = Minibatch(torch.arange(count), torch.arange(rollout.trajectories.actions).expand(count, -1))
    weights = scale * torch.linspace(-1, 1, count)
    find_objective(config).accumulate(Learner(model, cast_to(model, rollout), weights, config), every)
    return gradient(model)


@pytest.mark.parametrize(("transitions", "kl"), [(4, 0.0), (3200, 0.1), (100_000, 0.0)])
def test_the_policy_gradient_is_that_of_float32(tall, drawn, transitions, kl):
    # DDPO's optimizer steps are means over 3,200 transitions; as many are too slow here, so each of 4 weighs less.
    _, rollout = drawn
    scale = 4 / transitions
    settings = {"objective": {"kind": "reinforce"}, "train": {"kl_weight": kl * scale}}
    found, expected = (
        policy_gradient(rollout, configure(tall, dtype, **settings), scale) for dtype in ("float16", "float32")
    )
    assert cosine(found, expected) > 0.999
    assert float(found.norm() / expected.norm()) == pytest.approx(1, abs=0.01)


def last_step_gradient(folder: Path, drawn: tuple[Run, Rollout], dtype: str) -> torch.Tensor:
    run, rollout = drawn
    config = configure(folder, dtype, last_step={"mode": "backprop"})
    model = load_moved(config)
    changed = cast_to(model, rollout)
    pathwise = choose_pathwise(changed, config, {name: one.reward for name, one in load_scorers(run).items()})
    settings = LastStepSettings(mode="backprop", weight=1.0)
    accumulate_last_step(model, changed, torch.arange(4), pathwise, settings=settings, micro_batch_size=3)
    return gradient(model)


def test_the_gradient_through_the_last_call_is_that_of_float32(tall, drawn):
    gradients = [last_step_gradient(tall, drawn, dtype) for dtype in ("float16", "float32")]
    assert cosine(*gradients) > 0.999


def test_what_rounding_changes_through_the_last_call_is_which_pixels_are_clamped(tiny_lcm, tmp_path, monkeypatch):
    """Of a random U-Net without a middle block nearly all pixels are black or white, and so have no gradient.

    The few others carry it all, and rounding the weights moves some of them over the edge: to float32 its cosine is
    .82 in float16, in bfloat16, and in float32 with weights rounded to float16, whatever the loss is scaled by.
    Where pixels are not clamped, the gradients agree: nothing of it is lost on its way.
    """
    folder = build_tall(tiny_lcm, tmp_path / "tall", middle=None)
    drawn = draw_samples(folder, tmp_path / "run")
    clamped = [last_step_gradient(folder, drawn, dtype) for dtype in ("float16", "float32")]
    assert 0.7 < cosine(*clamped) < 0.999

    def decode_unclamped(model: LatentModel, latents: torch.Tensor) -> torch.Tensor:
        return (model.family.autoencoder.decode(model, latents) * 0.5 + 0.5).float() * 255

    monkeypatch.setattr(LatentModel, "decode_floats", decode_unclamped)
    whole = [last_step_gradient(folder, drawn, dtype) for dtype in ("float16", "float32")]
    assert cosine(*whole) > 0.999


def test_the_gradient_of_the_pretraining_loss_is_that_of_float32(tall, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    rows = [json.dumps({"file_name": f"{number}.png", "text": "cat"}) for number in range(2)]
    (pictures / "metadata.jsonl").write_text("\n".join(rows))
    plain = build_plain_diffusion(tmp_path / "sd", tall)
    gradients = []
    for dtype in ("float16", "float32"):
        # A weight that stands for a batch of 2,048 images.
        settings = {"source": str(pictures), "batch_size": 2, "weight": 2 / 2048}
        config = configure(plain, dtype, sampler={"kind": "ddim"}, pretraining=settings)
        model = load_moved(config)
        pairs = find_pairs(config, model)
        assert pairs is not None
        # What is compared is the gradient: the target is the same.
        monkeypatch.setattr(
            type(model), "encode_images", lambda model, pixels: pixels_to_latents(pixels).to(model.dtype)
        )
        accumulate_pretraining(model, pairs, config.pretraining, 5, micro_batch_size=2)
        gradients.append(gradient(model))
    assert cosine(*gradients) > 0.999


def pixels_to_latents(pixels: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.avg_pool2d(pixels.float() / 127.5 - 1, 2)
    return torch.cat([small, small.mean(1, keepdim=True)], dim=1).half().float()


class TestBackoff:
    """What happens where a scaled gradient overflows: a U-Net of one weight stands for the model's."""

    def scaled(self, values: int, *, dtype: torch.dtype = torch.float16) -> tuple[LossScale, torch.nn.Parameter, Any]:
        denoiser = torch.nn.Linear(1, 1, bias=False)
        model: Any = type("Model", (), {"denoiser": denoiser, "dtype": dtype})()

        def compute(slope: float):
            return lambda: ((denoiser.weight.to(dtype).float() * slope).sum(), None, "measured")

        return LossScale(model, values), denoiser.weight, compute

    def test_a_gradient_that_overflows_is_taken_again_with_a_smaller_scale(self):
        scale, weight, compute = self.scaled(2**20)
        assert scale.add_gradient(compute(1.0)) == "measured"  # 2^20 is more than float16 holds
        assert weight.grad.item() == 1.0
        assert scale.metrics()[BACKOFFS].item() == 2  # 2^12
        scale.add_gradient(compute(2.0))  # which is kept
        assert weight.grad.item() == 3.0
        assert scale.metrics()[BACKOFFS].item() == 2

    def test_what_float16_would_lose_is_kept(self):
        scale, weight, compute = self.scaled(2**30)
        scale.add_gradient(compute(3 * 2.0**-30))
        assert weight.grad.item() == 3 * 2.0**-30

    @pytest.mark.parametrize("slope", [math.inf, math.nan, 1e6])
    def test_what_no_scale_mends_is_left_for_the_check_of_the_norm(self, slope):
        scale, weight, compute = self.scaled(2**20)
        scale.add_gradient(compute(slope))
        assert not math.isfinite(weight.grad.item())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_other_dtypes_are_left_alone(self, dtype):
        scale, weight, compute = self.scaled(2**20, dtype=dtype)
        weight.grad = torch.full((1, 1), 0.5)
        scale.add_gradient(compute(3 * 2.0**-60))
        assert weight.grad.item() == 0.5  # the sum in float32, as without
        assert scale.metrics() == {}


def test_a_run_in_float16_says_how_often_the_scale_was_too_large_and_resumes_to_the_byte(tiny_lcm, tmp_path):
    config = configure(tiny_lcm, side=16)
    whole, halted = (create_run(tmp_path / name, config) for name in ("whole", "halted"))
    finish(loop(whole, load_policy_model(config), load_scorers(whole)))
    first = dataclasses.replace(
        halted, config=config.model_copy(update={"runtime": config.runtime.model_copy(update={"iterations": 1})})
    )
    for part in (first, halted):
        finish(loop(part, load_policy_model(config), load_scorers(part)))
    states = [read_trainer_state(run.layout, 2) for run in (whole, halted)]
    assert states[0].policy_digest == states[1].policy_digest
    for row in read_metrics(whole.layout):
        assert row.measured[BACKOFFS] == 0
        assert row.measured["grad_norm"] > 0


def test_a_gradient_that_stays_infinite_ends_in_an_error_and_is_not_stepped_on(tiny_lcm, tmp_path, monkeypatch):
    config = configure(tiny_lcm, side=16)
    run, model = create_run(tmp_path / "run", config), load_policy_model(config)
    original = LossScale.add_gradient

    def add_infinity(self, compute):
        measured = original(self, compute)
        next(p for p in self._parameters if p.grad is not None).grad.fill_(math.inf)
        return measured

    monkeypatch.setattr(LossScale, "add_gradient", add_infinity)
    with pytest.raises(TrainingError, match="the gradient is"):
        finish(loop(run, model, load_scorers(run)))
    assert run.layout.checkpoints() == [0]
