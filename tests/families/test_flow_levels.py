"""Noise levels of flow matching."""

from types import SimpleNamespace

import diffusers
import pytest

from rlcm_cli.errors import ModelError
from rlcm_cli.families._flow import check_scheduler, read_noise


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


def test_other_schedulers_are_refused():
    check_scheduler("it", make(), None)
    with pytest.raises(ModelError, match="it: its scheduler, DDIMScheduler, is not one of flow matching"):
        check_scheduler("it", diffusers.DDIMScheduler(), None)
    with pytest.raises(ModelError, match="invert_sigmas"):
        check_scheduler("it", make(invert_sigmas=True), None)
