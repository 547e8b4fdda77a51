"""Exported weights: under which keys, with which alpha, and what other tools read beside them."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from model_helpers import attach_tiny, draw, draw_with_diffusers, load_tiny, shake_lora
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_pipelines import build_flux, build_sdxl

from rlcm_cli.models.embedded import EMBEDDED, embedded_folder, integrity
from rlcm_cli.models.export import (
    describe_call,
    draw_by_pipeline,
    read_back_lora,
    read_back_pipeline,
    use_float32,
    write_kohya,
    write_lora,
    write_pipeline,
)
from rlcm_cli.models.fingerprint import digest_modules, modules_of, settings_of
from rlcm_cli.models.licences import Licence, read_licence
from rlcm_cli.samplers.lcm import LcmSettings
from rlcm_cli.store.adapters import read_adapter_settings

PROMPTS, SEEDS = ["cat", "dog"], [3, 4]


@pytest.fixture
def trained(tiny_lcm):
    model = load_tiny(tiny_lcm)
    attach_tiny(model, rank=2, alpha=8)
    shake_lora(model)
    return model


def metadata(file):
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def test_kohya_s_file_has_each_module_with_its_true_alpha(trained, tmp_path):
    file = write_kohya(trained, tmp_path / "x.safetensors", torch.float32, title="x")
    tensors = load_file(file)
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tensors[f"{module}.lora_down.weight"].shape == (2, 16)
    assert tensors[f"{module}.lora_up.weight"].shape == (16, 2)
    assert {key.rpartition(".")[2] for key in tensors} == {"weight", "alpha"}
    assert {tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha")} == {8.0}
    assert len(tensors) == 3 * sum("lora_A" in name for name, _ in trained.denoiser.named_parameters())
    told = metadata(file)
    assert (told["ss_network_dim"], told["ss_network_alpha"], told["ss_network_module"]) == (
        "2",
        "8.0",
        "networks.lora",
    )


def test_diffusers_converter_gives_back_the_lora_that_diffusers_writes(trained, tmp_path):
    """The two formats hold the same tensors, and the alphas that the metadata states."""
    kohya = load_file(write_kohya(trained, tmp_path / "x.safetensors", torch.float32, title="x"))
    own = load_file(write_lora(trained, tmp_path, torch.float32))
    back, alphas = _convert_non_diffusers_lora_to_diffusers(kohya)
    renamed = {
        key.replace("_lora.down.", ".lora_A.")
        .replace("_lora.up.", ".lora_B.")
        .replace(".lora.down.", ".lora_A.")
        .replace(".lora.up.", ".lora_B.")
        .replace(".processor", "")
        .replace("to_out.lora", "to_out.0.lora"): tensor
        for key, tensor in back.items()
    }
    assert renamed.keys() == own.keys()
    assert all(torch.equal(renamed[name], own[name]) for name in own)
    assert set(alphas.values()) == {8.0}


@pytest.mark.parametrize("form", ["diffusers", "kohya", "pipeline"])
def test_each_export_draws_by_diffusers_what_the_policy_draws(trained, tiny_lcm, tmp_path, form):
    base = load_tiny(tiny_lcm)
    untrained = draw(base, PROMPTS, SEEDS).images
    wanted = draw(trained, PROMPTS, SEEDS).images
    if form == "pipeline":
        pipeline = read_back_pipeline(write_pipeline(trained, tmp_path, torch.float32), trained.device)
        assert not any(hasattr(module, "lora_A") for module in pipeline.unet.modules())
    elif form == "kohya":
        pipeline = read_back_lora(base, write_kohya(trained, tmp_path / "x.safetensors", torch.float32, title="x"))
    else:
        pipeline = read_back_lora(base, write_lora(trained, tmp_path, torch.float32))
    drawn = draw_with_diffusers(pipeline, PROMPTS, SEEDS)
    assert (drawn.int() - wanted.int()).abs().max() <= 1
    assert (wanted.int() - untrained.int()).abs().float().mean() > 3


@pytest.mark.parametrize("build", [None, build_flux])
def test_a_model_that_has_drawn_in_16_bits_draws_in_float32_as_one_that_has_not(tiny_lcm, tmp_path, build):
    """What it keeps from one call to the next, prompts among it, is of the former dtype."""
    folder, size = (tiny_lcm, None) if build is None else (build(tmp_path / "model"), (16, 24))
    images = []
    for draws_before in (False, True):
        model = load_tiny(folder, "bfloat16", size)
        if draws_before:
            draw(model, PROMPTS, SEEDS)
            assert {tensor.dtype for tensor in model.kept.values()} == {torch.bfloat16}
        use_float32(model)
        encoded = model.encode_prompts(PROMPTS)
        assert {tensor.dtype for tensor in encoded.values() if tensor.is_floating_point()} == {torch.float32}
        images.append(draw(model, PROMPTS, SEEDS).images)
        assert {tensor.dtype for tensor in model.kept.values()} == {torch.float32}
    assert torch.equal(*images)


@pytest.mark.parametrize("form", [write_lora, write_pipeline])
def test_half_of_the_bytes_at_will(trained, tmp_path, form):
    form(trained, tmp_path, torch.float16)
    for file in tmp_path.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}
    if form is write_lora:
        assert read_adapter_settings(tmp_path / "pytorch_lora_weights.safetensors").alpha == 8


def test_a_pipeline_tells_no_place(trained, tiny_lcm, tmp_path):
    write_pipeline(trained, tmp_path, torch.float32)
    texts = [file.read_text() for file in tmp_path.rglob("*.json")]
    assert len(texts) > 5
    assert not any(str(tiny_lcm) in text or "name_or_path" in text for text in texts)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "LatentConsistencyModelPipeline"


def test_sdxl_is_named_as_kohya_s_tools_do(tmp_path):
    model = load_tiny(build_sdxl(tmp_path / "sdxl"))
    attach_tiny(model)
    told = metadata(write_kohya(model, tmp_path / "x.safetensors", torch.float32, title="x"))
    assert told["ss_base_model_version"] == "sdxl_base_v1-0"
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


@pytest.mark.parametrize(("spacing", "named"), [("diffusers", "num_inference_steps"), ("strided", "timesteps")])
def test_the_call_of_a_card_draws_with_the_schedule_of_the_run(trained, spacing, named):
    call = describe_call(trained, LcmSettings(spacing=spacing), steps=4, guidance_scale=4.0)
    assert set(call.arguments) == {named, "guidance_scale"}
    wanted = draw(trained, ["cat"], [3], spacing=spacing).images[0]
    drawn = draw_by_pipeline(trained.pipeline, "cat", 3, call)
    assert (drawn.int() - wanted.int()).abs().max() <= 1


def test_in_float32_a_half_precision_model_draws_in_float32(tiny_lcm):
    model = load_tiny(tiny_lcm, "bfloat16")
    use_float32(model)
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {torch.float32}
    assert draw(model, ["cat"], [3]).trajectories.latents_BSCHW.dtype == torch.float32


def test_the_licence_is_what_the_card_of_the_base_says(tmp_path):
    assert read_licence("emoji-lcm", None) == Licence("apache-2.0")
    assert read_licence(str(tmp_path), None) is None
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: x\nlicense_link: https://a.b/c\n---\n# y\n"
    )
    assert read_licence(str(tmp_path), None) == Licence("other", "x", "https://a.b/c")
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert read_licence(str(tmp_path), None) is None
    assert read_licence("nobody/nothing", None) is None


def test_the_embedded_models_are_those_that_were_shipped():
    """Whoever changes one changes `SHIPPED`."""
    assert {name: integrity.digest_folder(embedded_folder(name)) for name in EMBEDDED} == integrity.SHIPPED


def text_names(width_2=False):
    """Names of a text encoder's tensors in the files of stable-diffusion-v1-5 and of sdxl-base-1.0's second one."""
    names = ["text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"]
    norms = ["layer_norm1", "layer_norm2"]
    linear = ["mlp.fc1", "mlp.fc2", *(f"self_attn.{name}_proj" for name in "qkv"), "self_attn.out_proj"]
    for layer in range(2 if width_2 else 1):
        names += [
            f"text_model.encoder.layers.{layer}.{n}.{kind}" for n in norms + linear for kind in ("weight", "bias")
        ]
    names += [f"text_model.final_layer_norm.{kind}" for kind in ("weight", "bias")]
    return {*names}


def test_a_pipeline_s_text_encoder_has_the_names_that_are_published(trained, tiny_lcm, tmp_path):
    """transformers 4 and ComfyUI draw with random text encoders where they find others, and only log it."""
    folder = write_pipeline(trained, tmp_path / "x", torch.float32)
    assert {*load_file(folder / "text_encoder/model.safetensors")} == text_names()
    assert {file.name for file in (folder / "tokenizer").iterdir()} >= {"tokenizer.json", "vocab.json", "merges.txt"}
    assert load_tiny(folder).digest == trained_digest(tiny_lcm, folder)


def trained_digest(tiny_lcm, folder):
    """Digest of the base with the exported U-Net in it, so that every other part is compared."""
    base = load_tiny(tiny_lcm)
    base.denoiser.load_state_dict(load_file(folder / "unet/diffusion_pytorch_model.safetensors"))
    modules = sorted(modules_of(base.pipeline, base.family).items())
    return digest_modules(modules, settings_of(base.pipeline, base.family))


def test_both_text_encoders_of_sdxl_have_the_names_that_are_published(tmp_path):
    source = build_sdxl(tmp_path / "sdxl")
    model = load_tiny(source)
    folder = write_pipeline(model, tmp_path / "x", torch.float32)
    assert {*load_file(folder / "text_encoder/model.safetensors")} == text_names(width_2=True)
    second = {*load_file(folder / "text_encoder_2/model.safetensors")}
    assert second == text_names(width_2=True) | {"text_projection.weight"}
    assert (folder / "tokenizer_2/merges.txt").exists()
    assert load_tiny(folder).digest == load_tiny(source).digest
