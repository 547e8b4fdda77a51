"""What one process computes and what several do, side by side; started by torchrun, the leader prints JSON.

`process_driver.py MODEL PLAIN PICTURES FOLDER`: folders of the tiny pipeline, a plain diffusion pipeline, and real
images with captions; the runs are made in FOLDER.
"""

import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

from phase_runs import finish, make_config, prepare, shared_model  # noqa: E402

from rlcm_cli.learning.advantages import compute_advantages  # noqa: E402
from rlcm_cli.learning.minibatches import Minibatch, draw_minibatches  # noqa: E402
from rlcm_cli.learning.update import accumulate_update  # noqa: E402
from rlcm_cli.models.lora import lora_parameters  # noqa: E402
from rlcm_cli.phases.loop import loop  # noqa: E402
from rlcm_cli.phases.read_rollout import read_rollout  # noqa: E402
from rlcm_cli.phases.score import load_scorers  # noqa: E402
from rlcm_cli.phases.train import gather_data  # noqa: E402
from rlcm_cli.processes.job import Processes  # noqa: E402
from rlcm_cli.processes.join import join_processes  # noqa: E402
from rlcm_cli.runs.policy import load_checkpoint  # noqa: E402
from rlcm_cli.runs.run import create_run  # noqa: E402

MODEL, PLAIN, PICTURES, FOLDER = map(Path, sys.argv[1:])
PROCESSES = join_processes("cpu")
GROUPS = {"group_size": 2, "samples": 10}
CASES = {
    "ppo": (MODEL, {"sample": GROUPS, "train": {"kl_weight": 0.1}}),
    "grpo": (MODEL, {"sample": GROUPS, "objective": {"kind": "grpo"}, "train": {"advantages": "leave-one-out"}}),
    "rebel": (MODEL, {"sample": GROUPS, "objective": {"kind": "rebel", "rebel_lr": 10.0}}),
    "rwr": (MODEL, {"sample": GROUPS, "objective": {"kind": "rwr"}}),
    "teacher": (MODEL, {"sample": GROUPS, "teacher": {"weight": 0.1}}),
    "backprop": (MODEL, {"last_step": {"mode": "backprop"}, "reward": "brightness"}),
    "pretraining": (
        PLAIN,
        {"sampler": {"kind": "ddim"}, "pretraining": {"source": str(PICTURES), "batch_size": 5, "weight": 3.0}},
    ),
    "one transition": (MODEL, {"objective": {"kind": "reinforce"}}),
}


def gradient(data, minibatch):
    """Give the adapter's gradient as a vector, the step's metrics, and the images that this process predicted."""
    model = data.learner.model
    asked, predict = [], model.predict

    def counted(latents, *given, **named):
        asked.append(len(latents))
        return predict(latents, *given, **named)

    model.predict = counted
    parameters = list(lora_parameters(model).values())
    for parameter in parameters:
        parameter.grad = None
    metrics = accumulate_update(data, minibatch, 3).values
    del model.predict
    assert all(parameter.grad is not None for parameter in parameters)
    return torch.cat([parameter.grad.flatten() for parameter in parameters]).clone(), metrics, sum(asked)


def compare(name):
    """Compare the gradient of one optimizer step, computed alone and by the processes."""
    folder, sections = CASES[name]
    sections = dict(sections)
    reward = sections.pop("reward", "compressibility")
    config = make_config(folder, **sections)
    config = config.model_copy(update={"rewards": {reward: 1.0}})
    root = FOLDER / name
    if PROCESSES.leads:
        prepare(root, config)
    PROCESSES.wait()
    run, model = create_run(root, config), shared_model(folder, sampler=config.sampler.kind)
    rollout = read_rollout(run, model, load_checkpoint(run, model, 0), off_policy=False)
    advantages, _ = compute_advantages(rollout, config, {})
    alone_data, shared_data = (
        gather_data(run, model, rollout, advantages, None, processes) for processes in (Processes(), PROCESSES)
    )
    # Away from the policy that drew the samples, so that ratios, clipping and REBEL's pairs have something to say.
    generator = torch.Generator().manual_seed(0)
    for parameter in lora_parameters(model).values():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.adapter_digest = None
    minibatch = next(draw_minibatches(rollout, config, 0))
    if name == "one transition":
        minibatch = Minibatch(minibatch.samples_M[:1], minibatch.steps_MK[:1, :1])
    alone, expected, all_asked = gradient(alone_data, minibatch)
    together, metrics, asked = gradient(shared_data, minibatch)
    doubled = together.clone()
    PROCESSES.sum(doubled)
    return {
        "difference": ((together - alone).norm() / alone.norm()).item(),
        "the same bytes": torch.equal(doubled, PROCESSES.size * together),
        "metrics": [expected, metrics],
        "share of predictions": [part["asked"] / all_asked for part in PROCESSES.gather({"asked": asked})],
    }


def make_loop(name, iterations):
    """Make or continue a run with these processes."""
    config = make_config(MODEL, train={"minibatch_size": 4}, runtime={"iterations": iterations})
    run = create_run(FOLDER / name, config)
    finish(loop(run, shared_model(MODEL), load_scorers(run), PROCESSES))


report = {name: compare(name) for name in CASES}
make_loop("straight", 2)
make_loop("resumed", 1)
make_loop("resumed", 2)
PROCESSES.leave()
if PROCESSES.leads:
    print(json.dumps(report))
