"""How the same prompts and seeds are drawn in several ways, and what their images are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.judging.ways import Wanted, plan_ways
from rlcm_cli.pictures.drawing import Adapter

LORA = Adapter("a.safetensors", "0" * 64, 1.0, "mine", "mine/a.safetensors")


def plan(tiny_lcm: Path, **wanted):
    return plan_ways(Wanted(["a cat", "a dog"], model={"name": str(tiny_lcm)}, **wanted))


def test_the_base_and_a_lora_share_prompts_seeds_and_settings(tiny_lcm):
    base, lora = plan(tiny_lcm, adapters=[LORA], count=2, seed=7)
    assert (base.name, lora.name) == ("base", "mine")
    assert base.drawing.specs == lora.drawing.specs
    assert [spec.seed for spec in base.drawing.specs] == [7, 8, 9, 10]
    assert (base.drawing.adapter, lora.drawing.adapter) == (None, LORA)
    assert (base.drawing.sample, base.drawing.sampler) == (lora.drawing.sample, lora.drawing.sampler)
    assert lora.files[2] == "mine/00002-a-dog-9.png"
    row = lora.rows()[2]
    assert (row["prompt"], row["seed"], row["way"], row["lora"]) == ("a dog", 9, "mine", "mine/a.safetensors")
    assert str(tiny_lcm.parent) not in str(row)


def test_without_the_base_only_the_loras_are_drawn_and_without_loras_the_base(tiny_lcm):
    assert [way.name for way in plan(tiny_lcm, adapters=[LORA], base=False)] == ["mine"]
    assert [way.name for way in plan(tiny_lcm, base=False)] == ["base"]


def test_every_number_of_steps_meets_every_guidance(tiny_lcm):
    ways = plan(tiny_lcm, adapters=[LORA], steps=[1, 2], guidance=[3.0])
    assert [way.name for way in ways] == [
        f"{name}, {steps}, guidance 3" for name in ("base", "mine") for steps in ("1 step", "2 steps")
    ]
    assert [(way.drawing.sample.steps, way.drawing.sample.guidance_scale) for way in ways] == [(1, 3), (2, 3)] * 2
    assert len({way.folder for way in ways}) == 4


def test_loras_of_one_name_are_told_apart(tiny_lcm):
    long = "a name that is much longer than the forty signs of a folder"
    loras = [Adapter(f"{n}", f"{n}" * 64, 1.0, name, f"{n}") for n, name in enumerate([long, long, f"{long} too"])]
    ways = plan(tiny_lcm, adapters=loras)
    assert len({way.name for way in ways}) == len({way.folder for way in ways}) == 4


def test_a_seed_below_zero_is_refused(tiny_lcm):
    with pytest.raises(ConfigError, match="--seed -1"):
        plan(tiny_lcm, seed=-1)
