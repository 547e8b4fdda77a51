"""LoRA files as others write them: every layer gets the change that the file stands for, or the file is refused."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from lora_files import (
    ATTENTION,
    TEXT,
    adapter_metadata,
    assert_same,
    expected,
    loaded,
    make_modules,
    rslora_strength,
    save_diffusers,
    save_kohya,
    save_layers,
    save_processors,
)
from model_helpers import load_tiny
from safetensors.torch import load_file, save_file
from tiny_pipelines import build_sd, build_sdxl

from rlcm_cli.core.lora_file import read_lora
from rlcm_cli.errors import ModelError
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import load_foreign_lora, scale_foreign_lora, unload_foreign_lora

EVERYTHING = (*ATTENTION, "proj_in", "proj_out", "net.0.proj", "net.2", "conv1", "conv2", "conv_shortcut")
SGM_NAMES = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_2_0_op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_3_0_skip_connection",
    "mid_block.resnets.0.conv1": "middle_block_0_in_layers_2",
    "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
    "mid_block.resnets.1.conv2": "middle_block_2_out_layers_3",
    "up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_out.0": (
        "output_blocks_1_1_transformer_blocks_1_attn2_to_out_0"
    ),
    "up_blocks.0.upsamplers.0.conv": "output_blocks_1_2_conv",
    "up_blocks.1.resnets.0.conv2": "output_blocks_2_0_out_layers_3",
    "up_blocks.1.resnets.1.time_emb_proj": "output_blocks_3_0_emb_layers_1",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj": (
        "output_blocks_3_1_transformer_blocks_0_ff_net_0_proj"
    ),
}
"""diffusers' name → that of Stability's code, which kohya's tools use for SDXL: all kinds of layers, on all sides."""


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return build_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return build_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def model(sd):
    return load_tiny(sd)


@pytest.fixture(scope="module")
def big_model(sdxl):
    return load_tiny(sdxl)


@pytest.fixture(autouse=True)
def _no_adapter_stays(request):
    yield
    for name in {"model", "big_model"} & set(request.fixturenames):
        with quiet_libraries():
            unload_foreign_lora(request.getfixturevalue(name))


# Strengths


@pytest.mark.parametrize(
    ("ranks", "alphas"),
    [
        ((4,), (2.0,)),  # one alpha
        ((2, 4, 3), (1.0, 4.0, 0.5, 16.0)),  # block_dims and block_alphas, or resized with dynamic ranks
        ((2, 1), None),  # no alpha: that of its rank
    ],
)
@pytest.mark.parametrize("kind", ["model", "big_model"])
def test_kohya_each_module_has_its_own_alpha(request, tmp_path, kind, ranks, alphas):
    model = request.getfixturevalue(kind)
    parts = ["unet", "text_encoder"] + ["text_encoder_2"] * (kind == "big_model")
    modules = make_modules(model.pipeline, ends=(*EVERYTHING, *TEXT), parts=parts, ranks=ranks, alphas=alphas)
    load_foreign_lora(model, str(save_kohya(modules, tmp_path / "kohya.safetensors")), 1.0)
    assert_same(loaded(model.pipeline), expected(modules))
    scale_foreign_lora(model, -0.5)
    assert_same(loaded(model.pipeline), {name: -0.5 * delta for name, delta in expected(modules).items()})


def test_kohya_fused_weights_have_each_module_s_alpha(sd, tmp_path):
    plain = load_tiny(sd)
    modules = make_modules(plain.pipeline, ends=EVERYTHING, ranks=(2, 3), alphas=(1.0, 6.0, 0.5))
    file = save_kohya(modules, tmp_path / "kohya.safetensors")
    fused = load_model(str(sd), revision=None, dtype="float32", device="cpu", distilled_lora=str(file))
    before = plain.denoiser.state_dict()
    change = {name: tensor - before[name] for name, tensor in fused.denoiser.state_dict().items()}
    for module in modules:
        torch.testing.assert_close(change.pop(f"{module.name}.weight"), module.delta(), rtol=1e-4, atol=1e-6)
    assert not any(tensor.any() for tensor in change.values())


def test_kohya_s_names_for_sdxl_are_stability_s(big_model, tmp_path):
    modules = make_modules(big_model.pipeline, ends=list(SGM_NAMES), ranks=(2, 3), alphas=(1.0, 8.0, 0.25))
    modules = [module for module in modules if module.name in SGM_NAMES]
    assert len(modules) == len(SGM_NAMES)
    load_foreign_lora(big_model, str(save_kohya(modules, tmp_path / "sgm.safetensors", SGM_NAMES)), 1.0)
    assert_same(loaded(big_model.pipeline), expected(modules))


@pytest.mark.parametrize("save", [save_diffusers, save_layers, save_processors])
def test_diffusers_old_and_new_without_metadata_the_strength_is_1(model, tmp_path, save):
    parts = ["unet"] if save is save_processors else ["unet", "text_encoder"]
    modules = make_modules(model.pipeline, ends=(*ATTENTION, *TEXT), parts=parts, ranks=(2,))
    load_foreign_lora(model, str(save(modules, tmp_path / "lora.safetensors")), 1.0)
    assert_same(loaded(model.pipeline), expected(modules))


def test_diffusers_metadata_say_the_strength(model, tmp_path):
    modules = make_modules(model.pipeline, ranks=(4,))
    load_foreign_lora(model, str(save_diffusers(modules, tmp_path / "x.safetensors", r=4, lora_alpha=6)), 1.0)
    assert_same(loaded(model.pipeline), {f"unet.{m.name}": m.delta(6 / 4) for m in modules})


def test_diffusers_rslora_divides_by_the_root_of_the_rank(model, tmp_path):
    modules = make_modules(model.pipeline, ranks=(4,))
    file = save_diffusers(modules, tmp_path / "x.safetensors", r=4, lora_alpha=8, use_rslora=True)
    load_foreign_lora(model, str(file), 1.0)
    assert_same(loaded(model.pipeline), {f"unet.{m.name}": m.delta(rslora_strength(8, 4)) for m in modules})


def test_diffusers_patterns_give_a_module_its_own_rank_and_alpha(model, tmp_path):
    modules = make_modules(model.pipeline, ranks=(4, 2))
    own = modules[0].name
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {m.name: 2 for m in modules if m.rank == 2},
        "alpha_pattern": {f"^{own}": 3, "to_q": 2, r".*attn2\.to_k": 1},
    }
    load_foreign_lora(model, str(save_diffusers(modules, tmp_path / "x.safetensors", **settings)), 1.0)

    def alpha(name):
        return 3 if name == own else 2 if name.endswith("to_q") else 1 if name.endswith("attn2.to_k") else 8

    assert_same(loaded(model.pipeline), {f"unet.{m.name}": m.delta(alpha(m.name) / m.rank) for m in modules})


def test_the_strength_of_a_dora_that_diffusers_saved(model, tmp_path):
    modules = make_modules(model.pipeline, ranks=(2,))
    file = save_diffusers(modules, tmp_path / "x.safetensors", r=2, lora_alpha=4, use_dora=True)
    tensors = load_file(file)
    for module in modules:
        magnitude = torch.rand(len(module.up), generator=torch.Generator().manual_seed(1))
        tensors[f"unet.{module.name}.lora_magnitude_vector"] = magnitude
    save_file(tensors, file, metadata=adapter_metadata(modules, r=2, lora_alpha=4, use_dora=True))
    load_foreign_lora(model, str(file), 1.0)
    layer = model.denoiser.get_submodule(modules[0].name)
    wanted = tensors[f"unet.{modules[0].name}.lora_magnitude_vector"]
    assert torch.equal(layer.lora_magnitude_vector["policy"].weight, wanted)


# What binds in part


def rename_blocks(modules):
    """The same modules in blocks that the model does not have."""
    names = [re.sub(r"_block(s?)\.(\d)", r"_block\1.7\2", module.name) for module in modules]
    return [
        replace(module, name=name, down=module.down.clone(), up=module.up.clone())
        for module, name in zip(modules, names, strict=True)
        if name != module.name
    ]


def test_what_the_model_has_no_layer_for_is_told(model, tmp_path, caplog):
    modules = make_modules(model.pipeline, alphas=(1.0, 2.0))
    foreign = rename_blocks(modules)[: len(modules) // 2]
    file = save_kohya([*modules, *foreign], tmp_path / "x.safetensors")
    with caplog.at_level(logging.WARNING):
        load_foreign_lora(model, str(file), 1.0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"binds {len(modules)} of {len(modules) + len(foreign)} modules" in line
    assert "down_blocks_70_" in line
    assert_same(loaded(model.pipeline), expected(modules))


def test_a_lora_of_which_most_does_not_bind_is_refused(model, tmp_path):
    modules = make_modules(model.pipeline)
    foreign = rename_blocks(modules)
    file = save_diffusers([*modules[:2], *foreign], tmp_path / "x.safetensors")
    refuse(model, file, rf"binds \d+ of {2 + len(foreign)} modules; this model does not take .* more")


def test_a_module_that_diffusers_cannot_name_is_told(big_model, tmp_path, caplog):
    ends = [*ATTENTION, "add_embedding.linear_1", "add_embedding.linear_2"]
    modules = make_modules(big_model.pipeline, ends=ends, alphas=(2.0,))
    load_foreign_lora(big_model, str(save_kohya(modules, tmp_path / "x.safetensors")), 1.0)
    bound = loaded(big_model.pipeline)
    wanted = expected(modules)
    assert_same(bound, {name: wanted[name] for name in bound})
    lost = len(wanted) - len(bound)
    told = [record.getMessage() for record in caplog.records]
    assert [f"binds {len(bound)} of {len(wanted)} modules" in line for line in told] == [True] * (lost > 0)


# What is refused


def refuse(model, file, pattern):
    with pytest.raises(ModelError, match=pattern) as caught:
        load_foreign_lora(model, str(file), 1.0)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not getattr(model.denoiser, "peft_config", {})


def rename(file, change):
    save_file({change(key): tensor for key, tensor in load_file(file).items()}, file)
    return file


def test_the_name_of_an_adapter_in_the_keys(model, tmp_path):
    file = save_diffusers(make_modules(model.pipeline), tmp_path / "x.safetensors")
    rename(file, lambda key: key.replace(".weight", ".default.weight"))
    refuse(model, file, r"lora_A\.default\.weight.*save_lora_weights")


def test_kohya_s_dora(model, tmp_path):
    modules = make_modules(model.pipeline, alphas=(1.0,))
    file = save_kohya(modules, tmp_path / "x.safetensors")
    tensors = load_file(file)
    for key in [key for key in tensors if key.endswith("lora_up.weight")]:
        tensors[key.replace("lora_up.weight", "dora_scale")] = torch.ones(len(tensors[key]), 1)
    save_file(tensors, file)
    refuse(model, file, "DoRA in kohya's format")


@pytest.mark.parametrize(
    ("suffix", "kind"), [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lora_mid.weight", "Tucker"), ("diff", "diff")]
)
def test_what_is_not_only_a_lora(model, tmp_path, suffix, kind):
    file = save_kohya(make_modules(model.pipeline, alphas=(1.0,)), tmp_path / "x.safetensors")
    save_file({**load_file(file), f"lora_unet_mid_block_attentions_0_proj_in.{suffix}": torch.ones(2, 2)}, file)
    refuse(model, file, kind)


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_replication": [[0, 1]]},
        {"init_lora_weights": "pissa"},
        {"megatron_config": {"a": 1}, "megatron_core": "megatron.core.evil"},
        {"alpha_pattern": {"(a+)+$": 2}},
        {"alpha_pattern": {"(": 2}},
        {"target_modules": "(.*)*to_q"},
        {"exclude_modules": ".*a.*b.*c.*d"},
        {"r": 10**400},
        {"lora_alpha": "8"},
        {"r": None},
        {"rank_pattern": [1]},
    ],
)
def test_metadata_of_unknown_meaning(model, tmp_path, settings):
    settings = {"r": 2, "lora_alpha": 4, **settings}
    refuse(model, save_diffusers(make_modules(model.pipeline), tmp_path / "x.safetensors", **settings), "metadata")


def test_another_base_model_s_sizes(model, big_model, tmp_path):
    file = save_diffusers(make_modules(big_model.pipeline, ends=("attn2.to_k",)), tmp_path / "x.safetensors")
    refuse(model, file, "is not a LoRA for this model: its .* is for weights of")


def test_a_module_without_one_of_its_matrices(model, tmp_path):
    file = save_diffusers(make_modules(model.pipeline), tmp_path / "x.safetensors")
    tensors = load_file(file)
    del tensors[next(key for key in tensors if "lora_B" in key)]
    save_file(tensors, file)
    refuse(model, file, "only a half of its two matrices")


def test_matrices_of_different_ranks(model, tmp_path):
    file = save_diffusers(make_modules(model.pipeline), tmp_path / "x.safetensors")
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    save_file({**tensors, key: torch.ones(len(tensors[key]), 3)}, file)
    refuse(model, file, "are no LoRA's")


def test_biases_cannot_be_fused(sd, model, tmp_path):
    modules = make_modules(model.pipeline)
    file = save_diffusers(modules, tmp_path / "x.safetensors")
    biases = {f"unet.{m.name}.lora_B.bias": torch.ones(len(m.up)) for m in modules}
    save_file({**load_file(file), **biases}, file)
    with pytest.raises(ModelError, match="has biases"):
        load_model(str(sd), revision=None, dtype="float32", device="cpu", distilled_lora=str(file))


def test_nothing_of_diffusers_is_printed_before_a_refusal(model, big_model, tmp_path, capfd):
    file = save_diffusers(make_modules(big_model.pipeline), tmp_path / "x.safetensors")
    refuse(model, file, "not a LoRA for this model")
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_several_files_is_refused_rather_than_one_chosen(model, tmp_path):
    for name in ("a", "b"):
        save_diffusers(make_modules(model.pipeline), tmp_path / f"{name}.safetensors")
    refuse(model, tmp_path, "holds 2 safetensors files, a.safetensors, b.safetensors; name the one")


@pytest.mark.parametrize("offline", [True, False])
def test_a_mistyped_path_out_of_reach_of_the_hub_is_one_line(model, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    cause = "HF_HUB_OFFLINE is set" if offline else "the hub .* cannot be reached"
    refuse(model, "runs/compresion", f"is not here and could not be loaded from the hub .*{cause}.*name a run")


@pytest.mark.parametrize(
    ("parts", "part"),
    [({}, "unet"), ({"lora_unet": "unet"}, "unet"), ({"lora_unet": "transformer"}, "transformer")],
)
def test_kohya_s_prefix_is_of_the_denoiser_that_a_family_has(parts, part):
    """Kohya's files of SD3 and FLUX name their transformer lora_unet."""
    matrices = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2), "alpha": torch.tensor(1.0)}
    tensors = {f"lora_unet_blocks_0_attn_to_q.{role}": tensor for role, tensor in matrices.items()}
    tensors |= {f"lora_te_layers_0_q.{role}": tensor for role, tensor in matrices.items()}
    (module, encoder) = read_lora(tensors, {}, "x", parts).modules
    assert (module.part, module.name, module.strength) == (part, "blocks_0_attn_to_q", 0.5)
    assert (encoder.part, encoder.name) == ("text_encoder", "layers_0_q")


def test_a_prefix_that_no_tool_has_is_refused():
    with pytest.raises(ModelError, match=r"x: has a tensor that is not a LoRA's, of 1 \('lora_net_blocks"):
        read_lora({"lora_net_blocks_0.lora_down.weight": torch.ones(2, 4)}, {}, "x")
