"""Every objective trains the embedded models: a latent consistency model, flow matching of few and of many steps."""

from __future__ import annotations

import pytest
from phase_runs import finish

from rlcm_cli.config import resolve_settings
from rlcm_cli.models.parts import recommend
from rlcm_cli.objectives import OBJECTIVES, Need
from rlcm_cli.phases.loop import start_loop
from rlcm_cli.processes.job import Processes
from rlcm_cli.store.metrics import read_metrics

SMALL = {
    "sample.samples": 8,
    "sample.batch_size": 8,
    "sample.group_size": 4,
    "train.minibatch_size": 8,
    "train.learning_rate": 1e-3,
    "evaluate.prompts": 1,
    "evaluate.images_per_prompt": 1,
    "runtime.micro_batch_size": 8,
    "runtime.iterations": 2,
    "runtime.device": "cpu",
}
STEPS = {"emoji-lcm": 4, "emoji-sprint": 2, "emoji-sana": 4}


@pytest.mark.slow
@pytest.mark.parametrize("model", STEPS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_trains(tmp_path, model, objective):
    actions = Need.ACTIONS in OBJECTIVES[objective].needs
    noise = ["sampler.kind=flow", "sampler.eta=0.7"] if model == "emoji-sana" and actions else []
    config = resolve_settings(
        ["compression"],
        assignments=[*(f"{key}={value}" for key, value in SMALL.items()), *noise, f"sample.steps={STEPS[model]}"],
        flags={"model.name": model, "objective.kind": objective},
        recommend=lambda settings: recommend(settings.name, revision=None),
    )[0]
    started = start_loop(tmp_path / "run", config, Processes())
    finish(started.events)
    measured = [row.measured for row in read_metrics(started.run.layout)]
    assert len(measured) == 2
    assert all(row["grad_norm"] > 0 for row in measured)
    if actions:
        assert all(row["ratio_drift"] < 1e-4 for row in measured)
