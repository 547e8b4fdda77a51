"""What a model computes whole, and with its weights shared by two processes; the leader prints JSON.

`sharding_driver.py UNET TRANSFORMER FOLDER`: folders of two tiny pipelines; the runs are made in FOLDER.
"""

import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

from model_helpers import shake_lora  # noqa: E402
from phase_runs import finish, make_config  # noqa: E402
from sharded_calls import compare  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from rlcm_cli.config import override_config  # noqa: E402
from rlcm_cli.models import lora  # noqa: E402
from rlcm_cli.models.lora import lora_parameters  # noqa: E402
from rlcm_cli.phases.loop import loop  # noqa: E402
from rlcm_cli.phases.score import load_scorers  # noqa: E402
from rlcm_cli.processes.join import join_processes  # noqa: E402
from rlcm_cli.runs.policy import load_policy_model  # noqa: E402
from rlcm_cli.runs.run import create_run  # noqa: E402

UNET, TRANSFORMER, FOLDER = map(Path, sys.argv[1:])
PROCESSES = join_processes("cpu")
FLOW = {"sampler": {"kind": "flow"}}
MODELS = {"unet": (UNET, {}), "transformer": (TRANSFORMER, FLOW)}
# Three shards and micro-batches of three: the processes have different numbers of calls, forward and backward.
UNEQUAL = {
    "sample": {"samples": 6, "batch_size": 2, "shards": 3, "steps": 3, "guidance_scale": 1.0},
    "train": {"minibatch_size": 3, "learning_rate": 1e-3},
}


def load(name, **runtime):
    folder, sections = MODELS[name]
    config = make_config(folder, **sections, **UNEQUAL, runtime={"micro_batch_size": 2, **runtime})
    if name == "transformer":
        config = override_config(config, assignments=["model.image_size=24x16"])
    return config, load_policy_model(config, processes=PROCESSES)


def examine(name):
    (_, whole), (_, sharded) = load(name), load(name, shard_weights=True)
    held = [p for p in sharded.denoiser.parameters() if not p.requires_grad]
    report = {
        "digests": [whole.digest, sharded.digest],
        "blocks": len(PROCESSES.pace.blocks),
        "all sharded": all(isinstance(p, DTensor) for p in held),
        "trained whole": not any(isinstance(p, DTensor) for p in lora_parameters(sharded).values()),
        "held": sum(p.to_local().untyped_storage().nbytes() for p in held) / sum(p.nbytes for p in held),
    }
    for model in (whole, sharded):
        shake_lora(model)
    report |= compare(whole, sharded, PROCESSES)
    report["dropped"] = not any(block.is_gathered() for block in PROCESSES.pace.blocks)
    PROCESSES.pace.blocks.clear()
    return report


def make_loop(name, folder, **runtime):
    config, model = load(name, **runtime)
    run = create_run(FOLDER / folder, config)
    finish(loop(run, model, load_scorers(run), PROCESSES))
    PROCESSES.wait()
    PROCESSES.pace.blocks.clear()


report = {name: examine(name) for name in MODELS}
make_loop("unet", "unet-folded")
lora._foldable_layers = lambda model: {}  # sharded weights are not folded
for name in MODELS:
    make_loop(name, f"{name}-whole")
    make_loop(name, f"{name}-sharded", shard_weights=True, gradient_checkpointing=name == "unet")
PROCESSES.leave()
if PROCESSES.leads:
    print(json.dumps(report))
