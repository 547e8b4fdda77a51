"""What a LoRA file says of its modules, read from its tensors and metadata alone."""

import json
import math

import pytest
import torch

from rlcm_cli.core.lora_file import METADATA_KEY, normalise, read_lora, read_lora_settings
from rlcm_cli.errors import ModelError

DOWN, UP = torch.ones(2, 3), torch.ones(4, 2)


def peft(name: str = "blocks.0.to_q", part: str = "transformer") -> dict[str, torch.Tensor]:
    return {f"{part}.{name}.lora_A.weight": DOWN, f"{part}.{name}.lora_B.weight": UP}


def stated(**settings: object) -> dict[str, str]:
    values = {"r": 2, "lora_alpha": 8, **settings}
    return {METADATA_KEY: json.dumps({f"transformer.{key}": value for key, value in values.items()})}


@pytest.mark.parametrize(
    ("settings", "strength"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / math.sqrt(2)),
        ({"alpha_pattern": {"to_q": 2}}, 1.0),
        ({"alpha_pattern": {"to_k": 2}}, 4.0),
    ],
)
def test_metadata_say_how_strong_a_module_is(settings, strength):
    (module,) = read_lora(peft(), stated(**settings), "x").modules
    assert (module.part, module.name, module.rank) == ("transformer", "blocks.0.to_q", 2)
    assert module.strength == pytest.approx(strength)
    assert module.is_plain


def test_without_metadata_the_strength_is_one():
    assert [module.strength for module in read_lora(peft(), {}, "x").modules] == [1.0]


def test_an_alpha_of_kohya_s_is_the_module_s_own():
    roles = {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": torch.tensor(1.0)}
    read = read_lora({f"lora_unet_mid_to_q.{role}": tensor for role, tensor in roles.items()}, {}, "x")
    assert read.kohya
    assert [(module.name, module.strength) for module in read.of("unet")] == [("mid_to_q", 0.5)]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "holds no tensors"),
        ({"transformer.to_q.lora_A.weight": DOWN}, "only a half"),
        ({"transformer.to_q.hada_w1_a": DOWN}, "holds LoHa"),
        (peft() | {"transformer.blocks.0.to_q.lora_B.weight": UP * math.nan}, "not finite"),
    ],
)
def test_what_is_not_a_whole_plain_lora_is_refused_in_a_line(tensors, words):
    with pytest.raises(ModelError, match=words) as caught:
        read_lora(tensors, {}, "x")
    assert str(caught.value).startswith("x: ")
    assert "\n" not in str(caught.value)


def test_settings_of_a_part_are_read_alone():
    assert read_lora_settings({}, "transformer", "x") is None
    assert read_lora_settings(stated(), "unet", "x") is None
    found = read_lora_settings(stated(target_modules=["to_v", "to_k"]), "transformer", "x")
    assert found is not None
    assert (found.rank, found.alpha, found.target_modules) == (2, 8, ("to_k", "to_v"))
    with pytest.raises(ModelError, match="whose effect is not known here"):
        read_lora_settings(stated(surprise=1), "transformer", "x")


def test_names_differ_in_dots_only():
    assert normalise("text_model.layers.0.q") == normalise("layers_0_q") == "layers_0_q"
