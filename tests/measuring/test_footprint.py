"""What is computed from shapes is what real tensors take, and what the documentation says."""

from pathlib import Path

import pytest
import torch
from model_helpers import load_tiny
from pydantic import TypeAdapter

from rlcm_cli.measuring.footprint import (
    ADAPTER_BYTES,
    Activations,
    Arithmetic,
    Footprint,
    WeightCounts,
    measure_architecture,
    measure_work,
    weigh,
)
from rlcm_cli.models.architectures import build_architecture, build_text_encoders
from rlcm_cli.models.parts import RANDOM

WRITTEN = TypeAdapter(dict[str, Footprint]).validate_json(
    (Path(__file__).parents[2] / "docs" / "footprints.json").read_bytes()
)


def test_weights_are_counted_in_16_8_and_4_bits():
    found = weigh([torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Conv2d(3, 4, 1))])
    assert found == WeightCounts(total=128 * 64 + 64 + 12 + 4, linear=128 * 64, rows=64)
    rest = 2 * (64 + 12 + 4)
    assert found.count_bytes() == rest + 2 * 128 * 64
    assert found.count_bytes(8) == rest + 128 * 64 + 4 * 64
    assert found.count_bytes(4) == rest + 128 * 64 // 2 + 4 * (128 * 64 // 64)


def test_the_largest_phase_decides():
    found = Footprint(
        (8, 8),
        text_encoders=WeightCounts(1000, 1000, 1),
        denoiser=WeightCounts(300, 0, 0),
        autoencoder=WeightCounts(50, 0, 0),
        adapter=10,
        activations=Activations(call=7, decode=9, transition=500, checkpointed=40),
        flops=Arithmetic(1, 1, 1),
    )
    assert found.drawing_bytes(bits=16, keeps_text=True) == 2000 + 600 + 100 + 9
    assert found.drawing_bytes(bits=16, keeps_text=False) == 2000
    trained = 600 + 100 + ADAPTER_BYTES * 10
    assert found.training_bytes(bits=16, checkpointing=False, keeps_text=True) == 2000 + trained + 500
    assert found.training_bytes(bits=16, checkpointing=True, keeps_text=True) == 2000 + trained + 40


def test_shapes_take_what_real_tensors_take(tiny_lcm, monkeypatch):
    found = []
    for device in ("cpu", "meta"):
        monkeypatch.setattr("rlcm_cli.measuring.footprint.META", device)
        model = load_tiny(tiny_lcm)
        model.encode_prompts([""])
        model.pipeline.to(device)
        model.device = torch.device(device)
        found.append(measure_work(model, 4.0))
    (flops, taken, adapter), (other_flops, other_taken, other_adapter) = found
    assert (flops, adapter) == (other_flops, other_adapter)
    assert taken.checkpointed < taken.transition
    for name in ("call", "decode", "transition", "checkpointed"):
        assert getattr(other_taken, name) == pytest.approx(getattr(taken, name), rel=0.02), name


@pytest.mark.parametrize("name", RANDOM)
def test_the_documentation_has_the_weights_of_each_architecture(name):
    assert name in WRITTEN, f"run `python docs/footprints.py {name}` and `python docs/tables.py`"
    model = build_architecture(name, dtype="bfloat16", device="meta")
    encoders = build_text_encoders(name, dtype="bfloat16", device="meta")
    written = WRITTEN[name]
    assert (written.denoiser, written.autoencoder) == (weigh([model.denoiser]), weigh([model.pipeline.vae]))
    assert (written.text_encoders, written.image_size) == (weigh(encoders.values()), model.image_size)


def test_nothing_else_is_documented():
    assert WRITTEN.keys() == RANDOM.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "sd15-lcm" else [pytest.mark.slow]) for name in RANDOM]
)
def test_the_documentation_has_the_work_of_each_architecture(name):
    found = measure_architecture(name)
    assert found.flops == WRITTEN[name].flops
    assert found.adapter == WRITTEN[name].adapter
    for key, value in vars(found.activations).items():
        assert value == pytest.approx(getattr(WRITTEN[name].activations, key), rel=0.02), key
