"""What a pipeline of diffusers is asked for where none of its schedulers adds a run's noise."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_helpers import load_tiny
from tiny_pipelines import build_sdxl

from rlcm_cli.config import ModelSettings, SampleSettings
from rlcm_cli.pictures.export import Source, settle_call
from rlcm_cli.samplers.euler import EulerSettings


@pytest.mark.parametrize(
    ("scheduler", "eta", "wanted"),
    [("turbo", 0.5, "EulerAncestral"), ("lightning", 1.0, "EulerAncestral"), ("lightning", 0.5, "Euler")],
)
def test_it_draws_as_the_model_recommends(tmp_path, scheduler, eta, wanted):
    model = load_tiny(build_sdxl(tmp_path / "model", scheduler=scheduler))
    sample = SampleSettings(steps=4, guidance_scale=1.0)
    source = Source(Path("x"), "", ModelSettings(name="x"), sample, EulerSettings(eta=eta), False)
    settled, call = settle_call(source, model)
    assert call.scheduler == f"{wanted}DiscreteScheduler"
    assert settled.sampler.eta == (1.0 if wanted == "EulerAncestral" else 0.0)
