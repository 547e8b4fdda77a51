"""Steps and guidance that a model was not made for are told, once a run."""

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

GUIDED = "sample.guidance_scale is 8, and the sampler"
BLUR = "objective.kind nft learns by denoising, and"
FEW = "sd is made for 50 steps of the sampler ddim, and 12 give blurred images; use --steps 50"


@pytest.fixture(scope="module")
def plain(tiny_lcm, tmp_path_factory) -> Path:
    return build_plain_diffusion(tmp_path_factory.mktemp("plain") / "sd", tiny_lcm)


@pytest.mark.parametrize(
    ("sampler", "steps", "guidance_scale", "objective", "told"),
    [
        ("lcm", 2, 8.0, "ppo", [GUIDED]),
        ("tcd", 2, 8.0, "ppo", [GUIDED]),
        ("lcm", 2, 2.0, "ppo", []),
        ("ddim", 12, 8.0, "ppo", [FEW]),
        ("ddim", 13, 8.0, "ppo", []),
        ("own", 2, 8.0, "ppo", []),
        ("own", 2, 8.0, "nft", [BLUR]),
        ("lcm", 2, 8.0, "nft", [GUIDED, BLUR]),
        ("ddim", 13, 8.0, "nft", []),
    ],
)
def test_what_a_model_was_not_made_for_is_told_once(
    plain, tiny_lcm, tmp_path, sampler, steps, guidance_scale, objective, told, monkeypatch
):
    # A latent consistency model takes its guidance as an embedding, which it was trained with.
    folder, kind = (tiny_lcm, "lcm") if sampler == "own" else (plain, sampler)
    monkeypatch.chdir(folder.parent)
    settings = {"guidance_scale": guidance_scale, "steps": steps, "samples": 2}
    own = {"kind": objective, "times": 1} if objective == "nft" else {"kind": objective}
    config = parse_config(tiny_values(folder.name, sample=settings, sampler={"kind": kind}, objective=own))
    run, loaded = create_run(tmp_path / "run", config), load_policy_model(config)
    events = [event for number in (0, 1) for event in finish(sample(run, loaded, Worker(number, 2)))]
    found = [event.message for event in events if isinstance(event, Warned)]
    assert [message.startswith(start) for message, start in zip(found, told, strict=True)] == [True] * len(told)
