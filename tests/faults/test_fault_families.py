"""A loop of each model family, killed three times and started again, ends as if nobody had killed it."""

import signal
import time

import pytest
from family_runs import describe_family_run
from fault_runs import KILLED, check_left, contents, identities, on_forking_systems, start
from fork_server import LONGEST
from tiny_pipelines import BUILDERS, SIZES

from rlcm_cli.families import FAMILIES
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.variant import Variant

pytestmark = [on_forking_systems, pytest.mark.slow]  # test_kill.py kills a loop of one family by default
MILESTONES = (
    "rollouts/000000/shard-00000-of-00002.json",
    "checkpoints/000001",
    "rollouts/000001/rewards/*/shard-00000-of-00002.safetensors",
)
"""It is killed once one of these is there, which is long before its end."""


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_killed_loop_is_resumed_to_the_same_bytes(kind, tmp_path):
    model = next(iter(BUILDERS[kind].values()))(tmp_path / "model")
    loaded = load_model(str(model), revision=None, dtype="float32", device="cpu", variant=Variant(SIZES.get(kind)))
    given = describe_family_run(tmp_path, model, loaded)
    given += ["--samples", 4, "--set", "sample.shards=2", "--iterations", 2, "-q"]
    assert start(["loop", "--run", tmp_path / "whole", *given], tmp_path).finish().status == 0
    root = tmp_path / "killed"
    published = identities(root)
    for milestone in MILESTONES:
        process = start(["loop", "--run", root, *given], tmp_path)
        deadline = time.monotonic() + LONGEST
        while not [*root.glob(milestone)]:
            assert time.monotonic() < deadline, milestone
            time.sleep(0.002)
        process.send(signal.SIGKILL)
        assert process.finish().status == KILLED, milestone
        published = check_left(root, published)
    outcome = start(["loop", "--run", root, *given], tmp_path).finish()
    assert outcome.status == 0, outcome
    check_left(root, published)
    assert contents(root) == contents(tmp_path / "whole")
