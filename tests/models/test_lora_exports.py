"""A LoRA of any layout, exported: the strength of each layer in the file, worked out without rlcm or a loader."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from lora_files import (
    adapter_metadata,
    assert_same,
    expected,
    loaded,
    make_modules,
    rslora_strength,
    save_diffusers,
    save_kohya,
)
from model_helpers import load_tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlcm_cli.errors import ModelError
from rlcm_cli.models.export import (
    apply_base,
    read_back_lora,
    read_fused,
    write_kohya,
    write_lora,
    write_pipeline,
)
from rlcm_cli.models.lora import attach_lora, load_foreign_lora, load_lora, read_lora_file
from rlcm_cli.models.lora_binding import adapted_layers, bind_modules, compare_files, compare_fused
from rlcm_cli.store.adapters import read_adapter_settings


def write(model, form, folder):
    if form == "kohya":
        return write_kohya(model, folder / "x.safetensors", torch.float32, title="x")
    return write_lora(model, folder, torch.float32)


@pytest.fixture
def model(tiny_lcm):
    return load_tiny(tiny_lcm)


@pytest.fixture(params=["alphas", "ranks and alphas", "half an alpha", "rslora"])
def lora(request, model, tmp_path):
    """A file, and the change of each layer that it stands for."""
    ranks = (2, 4, 3) if request.param == "ranks and alphas" else (4,)
    alphas = (0.5,) if request.param == "half an alpha" else (1.0, 8.0, 0.5)
    modules = make_modules(model.pipeline, ends=("to_q", "to_k", "conv1"), ranks=ranks, alphas=alphas)
    file = tmp_path / "foreign.safetensors"
    if request.param == "rslora":
        save_diffusers(modules, file, r=4, lora_alpha=8, use_rslora=True)
        return SimpleNamespace(
            file=file, deltas={f"unet.{m.name}": m.delta(rslora_strength(8, 4)) for m in modules}, modules=modules
        )
    return SimpleNamespace(file=save_kohya(modules, file), deltas=expected(modules), modules=modules)


def read_deltas(file):
    """The changes by a file of either export, by its tensors and metadata; alpha is one for all modules."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    deltas = {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            up = tensors[key.replace("lora_A", "lora_B")]
            stated = json.loads(metadata["lora_adapter_metadata"])
            assert not stated["unet.alpha_pattern"]
            alpha = stated["unet.lora_alpha"]
            name = key.removeprefix("unet.").removesuffix(".lora_A.weight")
        elif key.endswith(".lora_down.weight"):
            up = tensors[key.replace("lora_down", "lora_up")]
            alpha = tensors[key.replace("lora_down.weight", "alpha")].item()
            name = key.removeprefix("lora_unet_").removesuffix(".lora_down.weight")
        else:
            continue
        deltas[name.replace(".", "_")] = alpha / len(down) * (up.flatten(1) @ down.flatten(1))
    return deltas


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_each_layer_keeps_its_strength(model, tiny_lcm, lora, tmp_path, form):
    load_foreign_lora(model, str(lora.file), 1.0)
    file = write(model, form, tmp_path)
    wanted = {name.removeprefix("unet.").replace(".", "_"): delta.flatten(1) for name, delta in lora.deltas.items()}
    assert_same(read_deltas(file), wanted)
    # and plain diffusers, which loses alphas that differ, has none to lose
    assert_same(loaded(read_back_lora(load_tiny(tiny_lcm), file), "default_0"), lora.deltas)


def test_a_pipeline_has_each_layer_changed_by_its_strength(model, tiny_lcm, lora, tmp_path):
    load_foreign_lora(model, str(lora.file), 1.0)
    fused = load_file(write_pipeline(model, tmp_path, torch.float32) / "unet/diffusion_pytorch_model.safetensors")
    before = load_tiny(tiny_lcm).denoiser.state_dict()
    for name, delta in lora.deltas.items():
        key = f"{name.removeprefix('unet.')}.weight"
        torch.testing.assert_close(fused[key] - before[key], delta, rtol=1e-4, atol=1e-6)


def test_a_run_starts_from_the_export_with_the_strength_of_the_file(model, tiny_lcm, lora, tmp_path):
    load_foreign_lora(model, str(lora.file), 1.0)
    file = write(model, "diffusers", tmp_path)
    if len({module.rank for module in lora.modules}) > 1:
        with pytest.raises(ModelError, match="several ranks"):
            read_adapter_settings(file)
        return
    stated = read_adapter_settings(file)
    again = load_tiny(tiny_lcm)
    attach_lora(again, rank=stated.rank, alpha=stated.alpha, target_modules=stated.target_modules, run_seed=0)
    load_lora(again, load_file(file), "digest")
    assert_same(loaded(again.pipeline), lora.deltas)


# The check of an export


@pytest.fixture
def exported(model, tmp_path):
    """A kohya file that is exported in each form, and the modules that it should have."""
    file = save_kohya(make_modules(model.pipeline, alphas=(4.0,)), tmp_path / "foreign.safetensors")
    wanted = bind_modules(read_lora_file(file, "x", model.family), model.pipeline, model.family, "x").bound["unet"]
    load_foreign_lora(model, str(file), 1.0)
    return wanted


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("fault", ["strength", "one module's values", "a module less"])
def test_a_file_with_a_fault_is_found(model, exported, tmp_path, form, fault):
    file = write(model, form, tmp_path)
    compare_files(read_lora_file(file, "x", model.family), exported, model.denoiser, model.family, "x")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    first = next(key for key in sorted(tensors) if "lora_up" in key or "lora_B" in key)
    if fault == "one module's values":
        tensors[first][0, 0] += 0.1 * tensors[first].abs().max()
    elif fault == "a module less":
        stem = first.replace("lora_up.weight", "").replace("lora_B.weight", "")
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(stem)}
    elif form == "kohya":
        key = next(key for key in tensors if key.endswith("alpha"))
        tensors[key] = tensors[key] * 1.01
    else:
        metadata = {
            "lora_adapter_metadata": metadata["lora_adapter_metadata"].replace(
                '"unet.lora_alpha": 4', '"unet.lora_alpha": 2'
            )
        }
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(ModelError, match=r"^x: "):
        compare_files(read_lora_file(file, "x", model.family), exported, model.denoiser, model.family, "x")


def test_a_pipeline_at_another_strength_is_found(model, exported, tmp_path):
    base = apply_base(model, exported)
    layers = [layer for _, layer in adapted_layers(model.denoiser, "policy")]
    layers[0].scaling["policy"] *= 0.5
    folder = write_pipeline(model, tmp_path, torch.float32)
    with pytest.raises(ModelError, match="differs from what the LoRA makes of it"):
        compare_fused(read_fused(folder, "unet", exported), base, exported, "x")


# What a format has no room for


def save_dora(modules, file):
    save_diffusers(modules, file, r=2, lora_alpha=4, use_dora=True)
    magnitudes = {f"unet.{m.name}.lora_magnitude_vector": torch.ones(len(m.up)) for m in modules}
    save_file(
        {**load_file(file), **magnitudes}, file, metadata=adapter_metadata(modules, r=2, lora_alpha=4, use_dora=True)
    )


def save_biases(modules, file):
    save_diffusers(modules, file)
    save_file({**load_file(file), **{f"unet.{m.name}.lora_B.bias": torch.ones(len(m.up)) for m in modules}}, file)


@pytest.mark.parametrize(("save", "form"), [(save_dora, "kohya"), (save_biases, "kohya"), (save_biases, "pipeline")])
def test_a_format_that_would_lose_a_part_is_one_line(model, tmp_path, save, form):
    save(make_modules(model.pipeline), tmp_path / "x.safetensors")
    load_foreign_lora(model, str(tmp_path / "x.safetensors"), 1.0)
    ways = {"kohya": lambda: write(model, "kohya", tmp_path)}
    ways["pipeline"] = lambda: write_pipeline(model, tmp_path, torch.float32)
    with pytest.raises(ModelError, match="format") as caught:
        ways[form]()
    assert "\n" not in str(caught.value)
