"""Tiny models of every family, whole and with weights that two processes share; the leader prints JSON.

`families_driver.py FOLDER`: of a pipeline a folder, KIND/NAME.
"""

import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

from model_helpers import attach_tiny, load_tiny, shake_lora  # noqa: E402
from sharded_calls import compare  # noqa: E402
from tiny_pipelines import SIZES  # noqa: E402

from rlcm_cli.processes.join import join_processes  # noqa: E402
from rlcm_cli.processes.sharding import shard_weights  # noqa: E402

PROCESSES = join_processes("cpu")
report = {}
for folder in sorted(Path(sys.argv[1]).glob("*/*")):
    for dtype in ("float32", "bfloat16"):
        models = [load_tiny(folder, dtype, SIZES.get(folder.parent.name)) for _ in range(2)]
        shard_weights(models[1].denoiser, torch.device("cpu"), PROCESSES)
        for model in models:
            attach_tiny(model)
            shake_lora(model)
        report[f"{folder.parent.name} {folder.name} {dtype}"] = compare(*models, PROCESSES)
        PROCESSES.pace.blocks.clear()
PROCESSES.leave()
if PROCESSES.leads:
    print(json.dumps(report))
