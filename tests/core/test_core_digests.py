import hashlib

import pytest
import torch

from rlcm_cli.core.digests import canonical_json, digest_json, digest_tensors

TENSORS = {"a": torch.arange(4.0), "b": torch.tensor(3)}


def test_equal_values_have_equal_text():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'
    assert digest_json({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()


def test_what_is_no_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_a_digest_depends_neither_on_the_order_nor_on_the_layout_of_tensors():
    shuffled = {"b": TENSORS["b"], "a": torch.arange(8.0).view(4, 2).T.contiguous().T[:, 0] / 2}
    assert torch.equal(shuffled["a"], TENSORS["a"])
    assert digest_tensors(shuffled) == digest_tensors(TENSORS)


@pytest.mark.parametrize(
    "changed",
    [
        {**TENSORS, "a": torch.tensor([0.0, 1.0, 2.0, 3.0000002])},
        {**TENSORS, "a": torch.tensor([-0.0, 1.0, 2.0, 3.0])},
        {**TENSORS, "a": TENSORS["a"].view(2, 2)},
        {**TENSORS, "a": TENSORS["a"].view(torch.int32)},
        {"c": TENSORS["a"], "b": TENSORS["b"]},
        {"a": TENSORS["a"]},
    ],
    ids=["bit", "sign of zero", "shape", "dtype", "name", "missing"],
)
def test_a_digest_changes_with_any_change(changed):
    assert digest_tensors(changed) != digest_tensors(TENSORS)


def test_a_digest_covers_the_metadata():
    assert digest_tensors(TENSORS, {"alpha": "4"}) != digest_tensors(TENSORS, {"alpha": "8"})


def test_half_precision_is_digested_by_its_bytes():
    half = {"a": torch.ones(2, dtype=torch.bfloat16)}
    assert digest_tensors(half) != digest_tensors({"a": torch.ones(2, dtype=torch.float16)})
