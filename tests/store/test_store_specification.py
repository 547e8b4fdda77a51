"""Rules 7 to 9 of the format: which fields and tensors each kind of record has."""

from __future__ import annotations

import pytest
import torch

from rlcm_cli.store.specification import FIELDS, OPTIONAL, TENSORS, TensorInfo, find_fault, find_wrong_value

NAMES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}

ROLLOUT = {
    "latents": torch.zeros(2, 3, 4, 1, 1),
    "log_probs": torch.zeros(2, 2),
    "timesteps": torch.zeros(2, 2, dtype=torch.int64),
    "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    **{name: torch.arange(2) for name in ("sample_index", "group_id", "member", "seed", "prompt_index")},
    "task_index": torch.zeros(2, dtype=torch.int64),
    "conditioning.prompt_embeds": torch.zeros(2, 5, 7),
    "conditioning_index.prompt_embeds": torch.tensor([1, 0]),
}
EVALUATION = {
    "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    "prompt_index": torch.tensor([1, 0]),
    "task_index": torch.zeros(2, dtype=torch.int64),
    "seed": torch.arange(2),
    "held_out": torch.tensor([0, 1], dtype=torch.uint8),
    "reward.compressibility": torch.zeros(2),
}
RECORDS = {
    "rollout": (ROLLOUT, {"plan": "p", "prompts": ["a", "b"], "tasks": ["t"]}),
    "rewards": (
        {"sample_index": torch.arange(2), "reward": torch.zeros(2)},
        {
            "plan": "p",
            "shard_sha256": "s",
            "reward": {"name": "r", "settings": {}, "digest": "d", "revision": "1"},
        },
    ),
    "evaluation": (
        EVALUATION,
        {"run": "r", "checkpoint": 0, "policy_digest": "p", "prompts": ["a", "b"], "tasks": ["t"], "revisions": {}},
    ),
    "rescored": (
        {"seed": torch.arange(2), "reward.compressibility": torch.zeros(2)},
        {"checkpoint": 0, "evaluation_sha256": "s", "revisions": {"compressibility": "2"}},
    ),
}


def fault_of(kind: str, tensors: dict[str, torch.Tensor] | None = None, fields: dict | None = None) -> str | None:
    own_tensors, own_fields = RECORDS[kind]
    infos = {
        name: TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in (tensors or own_tensors).items()
    }
    return find_fault(kind, own_fields if fields is None else fields, infos)


def test_every_kind_has_both_tables():
    assert FIELDS.keys() == TENSORS.keys() == RECORDS.keys()


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_its_kind_has_no_fault(kind):
    tensors, fields = RECORDS[kind]
    assert fault_of(kind) is None
    assert fault_of(kind, fields={**fields, "unknown": 1}) is None
    assert find_wrong_value(kind, fields, tensors) is None


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_without_rows_has_no_fault(kind):
    tensors, fields = RECORDS[kind]
    empty = {name: tensor if name.startswith(("cond", "time")) else tensor[:0] for name, tensor in tensors.items()}
    if kind == "rollout":
        empty["conditioning_index.prompt_embeds"] = torch.zeros(0, dtype=torch.int64)
    assert fault_of(kind, empty) is None
    assert find_wrong_value(kind, fields, empty) is None


@pytest.mark.parametrize("kind", RECORDS)
def test_every_field_is_needed_and_of_its_type(kind):
    fields = RECORDS[kind][1]
    for name in fields:
        without = {key: value for key, value in fields.items() if key != name}
        assert fault_of(kind, fields=without) == f"its field {name} is missing or cannot be"
        assert fault_of(kind, fields={**fields, name: 1.5}).startswith(f"its field {name}")


def test_a_field_of_a_table_is_named_by_both():
    fields = RECORDS["rewards"][1]
    fault = fault_of("rewards", fields={**fields, "reward": {**fields["reward"], "digest": None}})
    assert fault == "its field reward.digest is missing or cannot be"


@pytest.mark.parametrize("kind", RECORDS)
def test_every_tensor_that_is_not_one_of_several_is_needed(kind):
    tensors = RECORDS[kind][0]
    for name in TENSORS[kind]:
        if "*" not in name and name not in OPTIONAL.get(kind, ()):
            without = {key: value for key, value in tensors.items() if key != name}
            assert fault_of(kind, without) == f"it lacks the tensor {name}"


@pytest.mark.parametrize("kind", RECORDS)
def test_every_tensor_has_a_type_and_a_number_of_extents(kind):
    tensors = RECORDS[kind][0]
    for name, tensor in tensors.items():
        dtypes, extents = TENSORS[kind][name if name in TENSORS[kind] else f"{name.split('.')[0]}.*"]
        wrong = next((dtype for dtype, own in NAMES.items() if own not in dtypes), None)
        if wrong is not None:
            fault = fault_of(kind, {**tensors, name: tensor.to(wrong)})
            assert fault == f"its tensor {name} is {NAMES[wrong]}, not {' or '.join(dtypes)}"
        if "…" not in extents:
            fault = fault_of(kind, {**tensors, name: tensor[..., None]})
            assert fault.startswith(f"its tensor {name} has the shape {[*tensor.shape, 1]}, not [")


def test_final_latents_may_be_there():
    assert fault_of("rollout", {**ROLLOUT, "final_latents": torch.zeros(2, 4, 1, 1)}) is None
    fault = fault_of("rollout", {**ROLLOUT, "final_latents": torch.zeros(2, 3, 1, 1)})
    assert fault == "its tensor latents has the shape [2, 3, 4, 1, 1], not [B, S, C, h, w]"


def test_a_tensor_that_the_kind_has_not_is_named_in_part():
    fault = fault_of("rewards", {**RECORDS["rewards"][0], "x" * 200: torch.zeros(2)})
    assert fault == f"it has a tensor {'x' * 80!r}, which its kind has not"
    assert "'conditioning'" in fault_of("rollout", {**ROLLOUT, "conditioning": torch.zeros(2)})


def test_a_letter_has_one_size_throughout_the_record():
    # In the order of their names, the first to differ from those before it is named.
    fault = fault_of("evaluation", {**EVALUATION, "seed": torch.arange(3)})
    assert fault == "its tensor seed has the shape [3], not [B]"
    fault = fault_of("rollout", {**ROLLOUT, "log_probs": torch.zeros(2, 1)})
    assert fault == "its tensor timesteps has the shape [2, 2], not [A, 2]"


def test_images_have_three_channels():
    fault = fault_of("evaluation", {**EVALUATION, "images": torch.zeros(2, 4, 8, 8, dtype=torch.uint8)})
    assert fault == "its tensor images has the shape [2, 4, 8, 8], not [B, 3, H, W]"


@pytest.mark.parametrize(("states", "fits"), [(2, False), (3, True), (4, True), (5, True), (6, False)])
def test_a_rollout_has_a_state_for_each_action_and_at_most_two(states, fits):
    fault = fault_of("rollout", {**ROLLOUT, "latents": torch.zeros(2, states, 4, 1, 1)})
    assert fault == (None if fits else f"it has {states} states and 2 actions")


def test_every_conditioning_has_its_indices():
    fault = fault_of("rollout", {**ROLLOUT, "conditioning.pooled": torch.zeros(2, 5)})
    assert fault == "its conditioning and the indices of it have other names"


def test_a_conditioning_has_a_row_a_prompt():
    fault = fault_of("rollout", {**ROLLOUT, "conditioning.prompt_embeds": torch.zeros(3, 5, 7)})
    assert fault == "its conditioning.prompt_embeds has not a row for each prompt"


class TestValues:
    def wrong(self, kind: str, **changed: torch.Tensor) -> str | None:
        tensors, fields = RECORDS[kind]
        renamed = {name.replace("__", "."): tensor for name, tensor in changed.items()}
        return find_wrong_value(kind, fields, {**tensors, **renamed})

    @pytest.mark.parametrize("kind", ["rollout", "evaluation"])
    @pytest.mark.parametrize(("name", "limit"), [("prompt_index", 2), ("task_index", 1)])
    def test_an_index_points_to_something(self, kind, name, limit):
        for value in (-1, limit):
            fault = self.wrong(kind, **{name: torch.tensor([0, value])})
            assert fault == f"its tensor {name} has values outside of 0 to {limit - 1}"
        assert self.wrong(kind, **{name: torch.tensor([0, limit - 1])}) is None

    def test_so_does_that_of_a_conditioning(self):
        fault = self.wrong("rollout", conditioning_index__prompt_embeds=torch.tensor([0, 2]))
        assert fault == "its tensor conditioning_index.prompt_embeds has values outside of 0 to 1"

    def test_held_out_is_0_or_1(self):
        fault = self.wrong("evaluation", held_out=torch.tensor([0, 2], dtype=torch.uint8))
        assert fault == "its tensor held_out has values other than 0 and 1"
