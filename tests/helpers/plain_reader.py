"""Read a run by the rules of rlcm_cli/store/shards.py with `json` and `safetensors` alone; fail where one is broken.

Run as `python -I plain_reader.py RUN`: an installed rlcm_cli is not imported, and the last line says so.
"""

import hashlib
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

from safetensors import safe_open

RUN = Path(sys.argv[1])


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read(record, kind):
    receipt_text = record.with_suffix(".json").read_text(encoding="utf-8")  # rules 1 and 2
    receipt = json.loads(receipt_text)
    assert set(receipt) == {"format_version", "kind", "sha256", "bytes", "rows"}  # rule 3
    assert receipt["format_version"] == 1
    assert receipt["kind"] == kind
    data = record.read_bytes()
    assert len(data) == receipt["bytes"]
    assert hashlib.sha256(data).hexdigest() == receipt["sha256"]
    with safe_open(record, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert list(metadata) == ["rlcm"]  # rule 4
    fields = json.loads(metadata["rlcm"])
    assert metadata["rlcm"] == canonical(fields)
    assert fields["format_version"] == 1  # rule 5
    assert fields["kind"] == kind
    return receipt, fields, tensors


def expect(tensors, name, dtype, *shape):
    found = tensors[name]
    assert found.dtype == dtype, (name, found.dtype)
    assert found.shape == shape, (name, found.shape)
    return found


config = json.loads((RUN / "config.json").read_text(encoding="utf-8"))
fixed = {key: value for key, value in config["config"].items() if key not in {"runtime", "monitor", "ray"}}
fixed["evaluate"] = {key: value for key, value in fixed["evaluate"].items() if key != "every"}
IDENTITY = hashlib.sha256(canonical(fixed).encode()).hexdigest()
assert config["run"] == IDENTITY  # rule 5
counted = {"rollout": 0, "rewards": 0, "evaluation": 0}
for folder in sorted((RUN / "rollouts").iterdir()):
    assert re.fullmatch(r"\d{6}", folder.name)
    manifest_bytes = (folder / "manifest.json").read_bytes()
    manifest = json.loads(manifest_bytes)
    assert manifest_bytes == canonical(manifest).encode()  # rule 6
    assert manifest["format_version"] == 1
    assert manifest["iteration"] == int(folder.name)
    assert manifest["run"] == IDENTITY
    plan = hashlib.sha256(manifest_bytes).hexdigest()
    size, shards = manifest["group_size"], manifest["shards"]
    assert [start for start, _ in shards] == [0, *[stop for _, stop in shards[:-1]]]
    assert shards[-1][1] == len(manifest["prompts"]) * size
    assert all(edge % size == 0 for shard in shards for edge in shard)
    of_group = manifest["group_tasks"]
    assert len(of_group) == len(manifest["prompts"])
    assert sorted(set(of_group)) == list(range(len(manifest["tasks"])))

    revisions = {}
    names = [f"shard-{k:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
    assert sorted(file.name for file in folder.glob("*.safetensors")) == names
    for name, (start, stop) in zip(names, shards, strict=True):
        receipt, fields, tensors = read(folder / name, "rollout")  # rule 7
        assert set(fields) == {"format_version", "kind", "plan", "prompts", "tasks"}
        assert fields["plan"] == plan
        assert len(set(fields["prompts"])) == len(fields["prompts"])
        assert fields["tasks"] == manifest["tasks"]
        assert len(set(fields["tasks"])) == len(fields["tasks"])
        B, U = stop - start, len(fields["prompts"])
        S = len(manifest["schedule"]["timesteps"])
        A = S - 1
        C, h, w = tensors["latents"].shape[2:]
        H, W = tensors["images"].shape[2:]
        expect(tensors, "latents", "float32", B, S, C, h, w)
        expect(tensors, "log_probs", "float32", B, A)
        pairs = expect(tensors, "timesteps", "int64", A, 2)
        timesteps = manifest["schedule"]["timesteps"]
        assert pairs.tolist() == [list(pair) for pair in pairwise(timesteps)]
        expect(tensors, "images", "uint8", B, 3, H, W)
        index = expect(tensors, "sample_index", "int64", B)
        assert index.tolist() == list(range(start, stop))
        assert expect(tensors, "group_id", "int64", B).tolist() == [i // size for i in range(start, stop)]
        assert expect(tensors, "member", "int64", B).tolist() == [i % size for i in range(start, stop)]
        seeds = expect(tensors, "seed", "int64", B).tolist()
        for i, seed in zip(range(start, stop), seeds, strict=True):
            text = f"{manifest['run_seed']}/train/{manifest['iteration']}/{i}"
            assert seed == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        prompts = expect(tensors, "prompt_index", "int64", B).tolist()
        assert [fields["prompts"][p] for p in prompts] == [manifest["prompts"][i // size] for i in range(start, stop)]
        tasks = expect(tensors, "task_index", "int64", B).tolist()
        assert tasks == [of_group[i // size] for i in range(start, stop)]
        conditioning = [key for key in tensors if key.startswith("conditioning.")]
        assert conditioning
        for key in conditioning:
            assert len(tensors[key]) == U
            rows = expect(tensors, key.replace("conditioning.", "conditioning_index."), "int64", B)
            assert rows.tolist() == prompts
        assert receipt["rows"] == B
        counted["rollout"] += 1

        rewards = sorted((folder / "rewards").iterdir())
        assert rewards
        for reward_folder in rewards:  # rule 8
            slug, _, digest = reward_folder.name.rpartition("-")
            scored, fields, tensors = read(reward_folder / name, "rewards")
            assert set(fields) == {"format_version", "kind", "plan", "shard_sha256", "reward"}
            assert fields["plan"] == plan
            assert fields["shard_sha256"] == receipt["sha256"]
            assert set(fields["reward"]) == {"name", "settings", "digest", "revision"}
            assert re.split("[/:]", fields["reward"]["name"])[-1] == slug  # of code and addresses the last part
            assert fields["reward"]["digest"] == digest
            revisions.setdefault(reward_folder.name, fields["reward"]["revision"])
            assert fields["reward"]["revision"] == revisions[reward_folder.name]
            assert set(tensors) == {"sample_index", "reward"}
            rows = tensors["sample_index"].tolist()
            whole_tasks = {of_group[i // size] for i in rows}
            assert rows == [i for i in range(start, stop) if of_group[i // size] in whole_tasks]
            expect(tensors, "sample_index", "int64", len(rows))
            assert all(abs(value) < float("inf") for value in expect(tensors, "reward", "float32", len(rows)))
            assert scored["rows"] == len(rows)
            counted["rewards"] += 1

for folder in sorted((RUN / "evaluations").iterdir()):  # rule 9
    receipt, fields, tensors = read(folder / "evaluation.safetensors", "evaluation")
    named = {"format_version", "kind", "run", "checkpoint", "policy_digest", "prompts", "tasks", "revisions"}
    assert set(fields) == named
    assert fields["run"] == IDENTITY  # rule 5
    assert fields["checkpoint"] == int(folder.name)
    B = receipt["rows"]
    assert expect(tensors, "images", "uint8", B, 3, *tensors["images"].shape[2:]).any()
    expect(tensors, "seed", "int64", B)
    assert set(expect(tensors, "held_out", "uint8", B).tolist()) <= {0, 1}
    assert max(expect(tensors, "prompt_index", "int64", B)) < len(fields["prompts"])
    tasks = expect(tensors, "task_index", "int64", B).tolist()
    assert sorted(set(tasks)) == list(range(len(fields["tasks"])))
    rewards = [name for name in tensors if name.startswith("reward.")]
    assert rewards
    assert {f"reward.{name}" for name in fields["revisions"]} <= set(rewards)
    for name in rewards:
        given = [value == value for value in expect(tensors, name, "float32", B).tolist()]  # NaN is not itself
        whole_tasks = {task for task, is_number in zip(tasks, given, strict=True) if is_number}
        assert whole_tasks
        assert given == [task in whole_tasks for task in tasks]
    counted["evaluation"] += 1

for folder in sorted((RUN / "checkpoints").iterdir()):  # rule 11
    marker = json.loads((folder / "complete.json").read_text())
    files = marker["files"]
    assert set(files) == {file.name for file in folder.iterdir()} - {"complete.json"}
    assert marker["bytes"] == {name: (folder / name).stat().st_size for name in files}
    trainer = json.loads((folder / "trainer.json").read_text())
    assert (trainer["run"], trainer["number"]) == (IDENTITY, int(folder.name))
    for name, digest in files.items():
        if name != "pytorch_lora_weights.safetensors":  # digested over its tensors: its bytes are not canonical
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest

for file in sorted((RUN / "metrics").glob("*")):  # rule 12
    metrics = json.loads(file.read_text(encoding="utf-8"))
    assert metrics.pop("digest") == hashlib.sha256(canonical(metrics).encode()).hexdigest()
    number = int(file.stem)
    assert (metrics["run"], metrics["checkpoint"], metrics["iteration"]) == (IDENTITY, number, number - 1)

assert not [name for name in sys.modules if name.partition(".")[0] in {"rlcm_cli", "torch"}]
print(json.dumps(counted))
