"""Noise levels of flow matching."""

from types import SimpleNamespace

import diffusers
import pytest

from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.families import Configs
from rlcm_cli.families._flow import (
    check_scheduler,
    check_size,
    choose_sampler,
    list_even_sigmas,
    read_noise,
    recommend,
)
from rlcm_cli.samplers import SAMPLERS


def make(**settings):
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def noise_of(scheduler, arguments):
    return read_noise(SimpleNamespace(pipeline=SimpleNamespace(scheduler=scheduler)), arguments)


def test_levels_are_the_shifted_ones_of_the_scheduler():
    noise = noise_of(make(shift=3.0), lambda steps: {"num_inference_steps": steps})
    # Of Z-Image-Turbo's configuration the last call's σ is not 0.3, since its pipeline sets sigma_min to 0.
    assert noise.sigmas(2, None).tolist() == pytest.approx([1.0, 3 * 0.0029940 / (1 + 2 * 0.0029940), 0.0], rel=1e-3)
    assert noise.sigmas(4, [1.0, 0.75, 0.5, 0.25]).tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert noise.alpha_bar is None


def test_a_shift_that_depends_on_the_size_is_the_pipeline_s():
    scheduler = make(use_dynamic_shifting=True)
    noise = noise_of(scheduler, lambda steps: {"sigmas": [1.0, 0.5], "mu": 0.0})
    assert noise.sigmas(2, None).tolist() == pytest.approx([1.0, 0.5, 0.0])
    shifted = noise_of(scheduler, lambda steps: {"sigmas": [1.0, 0.5], "mu": 1.0})
    assert shifted.sigmas(2, None)[1] > 0.7
    assert shifted.sigmas(1, [0.5])[0] == shifted.sigmas(2, None)[1]


def test_the_shift_can_be_another_than_the_pipeline_s():
    scheduler = make(use_dynamic_shifting=True, shift_terminal=0.02)
    noise = noise_of(scheduler, lambda steps: {"sigmas": list_even_sigmas(steps), "mu": 1.0})
    assert noise.sigmas(4, None, 3.0).tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert noise.sigmas(1, None, 3.0).tolist() == [1.0, 0.0]
    assert noise.sigmas(4, None)[3] == pytest.approx(0.02)
    with pytest.raises(ConfigError, match=r"noise levels end at 0\.02 \(shift_terminal\).*--steps 2 or more"):
        noise.sigmas(1, None)


def test_samplers_that_draw_with_other_noise_are_refused():
    configs = Configs({}, {}, None)
    assert choose_sampler("it", configs, None, None) is SAMPLERS["flow"]
    assert choose_sampler("it", configs, SAMPLERS["flow"], None) is SAMPLERS["flow"]
    with pytest.raises(
        ModelError, match="it: is a model of flow matching, which the sampler 'lcm' cannot draw; use --"
    ):
        choose_sampler("it", configs, SAMPLERS["lcm"], None)


def test_sizes_are_multiples():
    check_size(32, 48, 16)
    with pytest.raises(ModelError, match="images of 40 x 32 pixels: this model's are multiples of 16 pixels"):
        check_size(32, 40, 16)
    with pytest.raises(ModelError, match="images of 0 pixels"):
        check_size(0, 0, 16)


def test_a_recommendation_is_trained_with_noise():
    found = recommend(8, 1.0, image_size=(512, 768), source="a card", shift=3.0)
    assert (found.sampler, found.steps, found.drawing) == ("flow", 8, {"shift": 3.0})
    assert found.training == {
        "sample.steps": 8,
        "sample.guidance_scale": 1.0,
        "sampler.eta": 0.9,
        "sampler.shift": 3.0,
    }
    assert recommend(8, 1.0, image_size=(512, 768), source="a card").drawing == {}


def test_other_schedulers_are_refused():
    check_scheduler("it", make(), None)
    with pytest.raises(ModelError, match="it: its scheduler, DDIMScheduler, is not one of flow matching"):
        check_scheduler("it", diffusers.DDIMScheduler(), None)
    with pytest.raises(ModelError, match="invert_sigmas"):
        check_scheduler("it", make(invert_sigmas=True), None)
