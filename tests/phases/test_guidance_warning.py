"""Strong guidance of weights that were distilled for few steps is told, once a run."""

from pathlib import Path

import pytest
from conftest import tiny_values
from phase_runs import finish
from plain_diffusion import build_plain_diffusion

from rlcm_cli.config import parse_config
from rlcm_cli.events import Warned
from rlcm_cli.phases.sample import sample
from rlcm_cli.processes.worker import Worker
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run


@pytest.fixture(scope="module")
def plain(tiny_lcm, tmp_path_factory) -> Path:
    return build_plain_diffusion(tmp_path_factory.mktemp("plain") / "sd", tiny_lcm)


@pytest.mark.parametrize(
    ("sampler", "guidance_scale", "told"),
    [("lcm", 8.0, True), ("tcd", 8.0, True), ("lcm", 2.0, False), ("ddim", 8.0, False), ("own", 8.0, False)],
)
def test_it_is_told_where_guidance_takes_two_predictions(plain, tiny_lcm, tmp_path, sampler, guidance_scale, told):
    # A latent consistency model takes its guidance as an embedding, which it was trained with.
    folder, kind = (tiny_lcm, "lcm") if sampler == "own" else (plain, sampler)
    settings = {"guidance_scale": guidance_scale, "steps": 2}
    config = parse_config(tiny_values(folder, sample=settings, sampler={"kind": kind}))
    run, loaded = create_run(tmp_path / "run", config), load_policy_model(config)
    events = [event for number in (0, 1) for event in finish(sample(run, loaded, Worker(number, 2)))]
    found = [event.message for event in events if isinstance(event, Warned)]
    assert len(found) == told
    assert all(message.startswith("sample.guidance_scale is 8, and the sampler") for message in found)
