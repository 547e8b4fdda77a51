"""Noise schedules that are stated as betas."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

from rlcm_cli.errors import ModelError
from rlcm_cli.families._betas import STABLE_DIFFUSION_SCHEDULE, check_scheduler, read_noise


def make(**settings):
    return diffusers.DDIMScheduler(**{**STABLE_DIFFUSION_SCHEDULE, "clip_sample": False, **settings})


def test_the_noise_is_the_scheduler_s():
    scheduler = make()
    noise = read_noise(SimpleNamespace(pipeline=SimpleNamespace(scheduler=scheduler)))
    assert noise.alphas_cumprod is noise.alpha_bar
    assert torch.equal(noise.alphas_cumprod, scheduler.alphas_cumprod)
    assert noise.scheduler["beta_end"] == 0.012


@pytest.mark.parametrize(
    ("scheduler", "stated", "words"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), None, "states no schedule of betas"),
        (make(clip_sample=True), None, "clips or thresholds"),
        (make(), {"thresholding": True}, "clips or thresholds"),
        (make(beta_start=-0.5, beta_end=-0.5, beta_schedule="linear"), None, "does not fall from 1 towards 0"),
    ],
)
def test_what_no_policy_is_drawn_with_is_refused(scheduler, stated, words):
    check_scheduler("mine", make(), None)
    with pytest.raises(ModelError, match=words) as caught:
        check_scheduler("mine", scheduler, stated)
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)
