"""LoRA files with damage of all kinds: each is used as it says, or refused in one line."""

from __future__ import annotations

import random

import pytest
from lora_files import make_modules, save_diffusers, save_kohya
from model_helpers import load_tiny

from rlcm_cli.errors import RlcmError
from rlcm_cli.models.lora import load_foreign_lora, unload_foreign_lora
from rlcm_cli.store.adapters import read_adapter_settings
from rlcm_cli.store.inspection import describe_path

MUTATIONS = 5000
WORDS = [(b'"F32"', b'"I32"'), (b'"F32"', b'"C64"'), (b"lora_A", b"lora_B"), (b"[2,", b"[0,"), (b"unet", b"unit")]
TEXT = b'0123456789"{}[],:abz.-_\x00\xff '


def mutate(data: bytes, dice: random.Random) -> bytes:
    header = 8 + int.from_bytes(data[:8], "little")
    changed = bytearray(data)
    kind = dice.choice(["letter", "letter", "bit", "cut", "word"])
    if kind == "letter":
        for _ in range(dice.choice([1, 2, 5])):
            changed[dice.randrange(8, header)] = dice.choice(TEXT)
    elif kind == "bit":
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del changed[dice.randrange(len(changed)) :]
    else:
        old, new = dice.choice(WORDS)
        places = [place for place in range(header) if data.startswith(old, place)]
        if places:
            place = dice.choice(places)
            changed[place : place + len(old)] = new
    return bytes(changed)


@pytest.mark.slow
def test_a_damaged_file_is_used_as_it_says_or_refused_in_one_line(tiny_lcm, tmp_path):
    model = load_tiny(tiny_lcm)
    modules = make_modules(model.pipeline, ends=("to_q", "conv1"), alphas=(1.0, 2.0))
    whole = [
        save_kohya(modules, tmp_path / "kohya.safetensors").read_bytes(),
        save_diffusers(modules, tmp_path / "diffusers.safetensors", r=2, lora_alpha=4).read_bytes(),
    ]
    file, dice, refusals = tmp_path / "damaged.safetensors", random.Random(7), []  # noqa: S311
    for _ in range(MUTATIONS):
        file.write_bytes(mutate(dice.choice(whole), dice))
        for use in (read_adapter_settings, describe_path, lambda path: load_foreign_lora(model, str(path), 1.0)):
            try:
                use(file)
            except RlcmError as error:
                refusals.append(str(error))
        assert file.exists()
        if model.pipeline.get_list_adapters():
            unload_foreign_lora(model)
    assert len(refusals) > MUTATIONS
    assert not any("\n" in refusal for refusal in refusals)
