"""Files cut short by a broken upload or copy: named with a remedy that mends the run, never used, never lost."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from fault_runs import command, contents, make_undisturbed, on_forking_systems, start, succeed

from rlcm_cli.core.digests import sha256
from rlcm_cli.errors import StoreError

pytestmark = on_forking_systems
LENGTHS = {
    "empty": lambda size: 0,
    "one byte": lambda size: 1,
    "half": lambda size: size // 2,
    "all but one byte": lambda size: size - 1,
}
REWARDS = "rollouts/000001/rewards/*/"
FILES = (
    "rollouts/000001/shard-00001-of-00002.safetensors",
    "rollouts/000001/shard-00001-of-00002.json",
    REWARDS + "shard-00000-of-00002.safetensors",
    REWARDS + "shard-00000-of-00002.json",
    "rollouts/000001/manifest.json",
    "checkpoints/000001/pytorch_lora_weights.safetensors",
    "checkpoints/000001/optimizer.safetensors",
    "checkpoints/000001/prompt_statistics.json",
    "checkpoints/000001/trainer.json",
    "checkpoints/000001/complete.json",
    "evaluations/000000/evaluation.safetensors",
    "evaluations/000000/evaluation.json",
    "config.json",
)


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pattern", FILES)
def test_the_remedies_for_a_file_cut_short_mend_the_run(tiny_lcm, tmp_path, pattern, length):
    undisturbed = make_undisturbed(tiny_lcm)
    root = Path(shutil.copytree(undisturbed.looped, tmp_path / "run"))
    for name in ("checkpoints/000002", "evaluations/000002"):
        shutil.rmtree(root / name)
    (file,) = root.glob(pattern)
    data = file.read_bytes().rstrip(b"\n")  # without its last line feed a file says the same
    file.write_bytes(data[: LENGTHS[length](len(data))])
    damaged = sha256(file.read_bytes())

    arguments = command("loop", root, undisturbed.settings)
    for _ in range(4):
        before = raw_digests(root)
        outcome = start(arguments, tmp_path).finish()
        if outcome.status == 0:
            break
        assert outcome.status == StoreError.exit_code, outcome
        assert before.items() <= raw_digests(root).items(), "a refused run was changed"
        (remedy,) = re.findall(r"`rlcm (quarantine [^`]+)`", outcome.line())
        place = Path(shlex.split(remedy)[1])
        assert place.is_relative_to(root)
        assert place.exists() or place.with_suffix(".json").exists(), "the remedy is for what is there"
        succeed(shlex.split(remedy), tmp_path)
    assert outcome.status == 0, outcome
    assert damaged in raw_digests(root / "quarantine").values(), "what was damaged is kept for whoever wants to look"
    assert contents(root) == contents(undisturbed.looped)


def raw_digests(folder: Path) -> dict[str, str]:
    """Digest the bytes of each file."""
    return {str(file): sha256(file.read_bytes()) for file in folder.rglob("*") if file.is_file()}
