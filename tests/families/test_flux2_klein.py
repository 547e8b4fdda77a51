"""FLUX.2 klein: what is particular to it."""

from __future__ import annotations

import shutil

import pytest
import torch
from model_helpers import draw, edit_json, load_tiny
from safetensors.torch import save_file
from tiny_transformers import build_flux2_klein
from transformer_families import (
    PROMPTS,
    SEEDS,
    SIZE,
    check_comfyui_names,
    draw_both,
    largest_difference,
    record_calls,
)

from rlcm_cli.errors import ModelError
from rlcm_cli.families.flux2_klein import FAMILY, LORA_TARGETS
from rlcm_cli.models.lora import load_foreign_lora
from rlcm_cli.models.lora_binding import adapted_layers
from rlcm_cli.models.parts import recommend

DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks"
NAMES = {
    "lora_unet_double_blocks_0_img_attn_qkv": [f"{DOUBLE}.attn.to_{one}" for one in "qkv"],
    "lora_unet_double_blocks_0_txt_attn_qkv": [f"{DOUBLE}.attn.add_{one}_proj" for one in "qkv"],
    "lora_unet_double_blocks_0_img_attn_proj": [f"{DOUBLE}.attn.to_out.0"],
    "lora_unet_double_blocks_0_txt_attn_proj": [f"{DOUBLE}.attn.to_add_out"],
    "lora_unet_double_blocks_0_img_mlp_0": [f"{DOUBLE}.ff.linear_in"],
    "lora_unet_double_blocks_0_img_mlp_2": [f"{DOUBLE}.ff.linear_out"],
    "lora_unet_double_blocks_0_txt_mlp_0": [f"{DOUBLE}.ff_context.linear_in"],
    "lora_unet_double_blocks_0_txt_mlp_2": [f"{DOUBLE}.ff_context.linear_out"],
    "lora_unet_single_blocks_0_linear1": [f"{SINGLE}.0.attn.to_qkv_mlp_proj"],
    "lora_unet_single_blocks_1_linear1": [f"{SINGLE}.1.attn.to_qkv_mlp_proj"],
    "lora_unet_img_in": ["x_embedder"],
    "lora_unet_txt_in": ["context_embedder"],
    "lora_unet_time_in_in_layer": ["time_guidance_embed.timestep_embedder.linear_1"],
    "lora_unet_time_in_out_layer": ["time_guidance_embed.timestep_embedder.linear_2"],
    "lora_unet_final_layer_linear": ["proj_out"],
}
"""As `model_lora_keys_unet` of ComfyUI (comfy/lora.py) has them, of every weight of its own model; their rows are told
by `flux_to_diffusers` (comfy/utils.py)."""


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    return build_flux2_klein(tmp_path_factory.mktemp("klein") / "klein")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_flux2_klein(tmp_path_factory.mktemp("klein") / "base", distilled=False)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_levels_depend_on_the_size_and_the_steps(klein, steps):
    assert largest_difference(*draw_both(klein, steps=steps, guidance_scale=1.0)) <= 1


def test_levels_of_512_pixels_are_those_of_the_published_scheduler(klein):
    model = load_tiny(klein)
    model.family.latents.set_size(model.pipeline, 512, 512)
    model.image_size = 128, 128  # as many tokens as 512 pixels have in the published model
    levels = model.noise.sigmas(4, None)
    assert levels.tolist() == pytest.approx([1.0, 0.958, 0.884, 0.718, 0.0], abs=6e-4)


def test_bfloat16_rounds_where_the_pipeline_does(klein):
    one, other = draw_both(klein, steps=4, guidance_scale=1.0, dtype="bfloat16")
    assert (
        largest_difference(one, other) <= 24
    )  # one bit of an image in 16 bits is 1 of 256, at the end of the chain 4


def test_guidance_is_a_second_prediction_of_the_base_model_only(klein, base, monkeypatch):
    for folder, counts in ((klein, (1, 1)), (base, (1, 2))):
        model = load_tiny(folder, image_size=SIZE)
        assert (model.count_predictions(1.0), model.count_predictions(4.0)) == counts
        assert model.guided_by_embedding is (folder is klein)
        assert ("negative_prompt_embeds" in model.encode_prompts(["cat"])) is (folder is base)
    assert (
        largest_difference(
            *(draw(load_tiny(klein, image_size=SIZE), PROMPTS, SEEDS, guidance_scale=g).images for g in (1, 4))
        )
        == 0
    )


def test_the_transformer_is_told_the_time_and_the_places(klein, monkeypatch):
    model = load_tiny(klein, image_size=SIZE)
    calls = record_calls(model, monkeypatch)
    draw(model, PROMPTS, SEEDS, steps=2)
    first = calls[0]
    assert first["timestep"].tolist() == [1.0, 1.0]
    assert first["hidden_states"].shape == (2, 4 * 6, 16)
    assert first["encoder_hidden_states"].shape == (2, 512, 24)
    assert first["txt_ids"][0, :3].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]
    assert first["img_ids"][0, 5:8].tolist() == [[0, 0, 5, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    assert all(call["img_ids"] is first["img_ids"] for call in calls), "are copied to the device again"


def test_an_image_is_encoded_to_the_latents_that_it_is_decoded_from(klein):
    model = load_tiny(klein, image_size=SIZE)
    images = torch.randint(0, 256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pipeline = model.pipeline
    expected = pipeline._encode_vae_image(images.float() / 127.5 - 1, None)
    torch.testing.assert_close(model.encode_images(images), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape[1:] == model.latent_shape


def test_comfyui_finds_the_layers(klein, tmp_path):
    # `attn.to_out` of the blocks with one stream is a layer, of the others a list of them: not in one list of names.
    ends = (
        "linear_in",
        "linear_out",
        "x_embedder",
        "context_embedder",
        "linear_1",
        "linear_2",
        "transformer.proj_out",
    )
    model = load_tiny(klein, image_size=SIZE)
    named = [name for name, _ in model.denoiser.named_modules() if name == "proj_out" or name.endswith(ends)]
    check_comfyui_names(klein, tmp_path, NAMES, [*LORA_TARGETS, *named])
    every = FAMILY.names.stack([name for name, _ in model.denoiser.named_modules()])
    assert every["single_blocks.1.linear2"] == (f"{SINGLE}.1.attn.to_out",)


def test_a_lora_of_some_of_the_projections_is_written_for_comfyui(klein, tmp_path):
    names = {key: NAMES[key] for key in ("lora_unet_double_blocks_0_img_attn_qkv",)}
    check_comfyui_names(klein, tmp_path, names, ["attn.to_k"])


def test_a_layer_without_a_name_elsewhere_is_one_line(klein, tmp_path):
    with pytest.raises(ModelError, match=r"a module for norm_out\.linear, which kohya's format has no name for"):
        check_comfyui_names(klein, tmp_path, {}, ["norm_out.linear"])


def test_a_lora_in_black_forest_labs_names_is_read(klein, tmp_path):
    model = load_tiny(klein, image_size=SIZE)
    tensors = {}
    for name, rows in (("double_blocks.0.img_attn.qkv", 96), ("double_blocks.0.txt_attn.proj", 32)):
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(2, 32)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, 2)
    save_file(tensors, tmp_path / "x.safetensors")
    load_foreign_lora(model, str(tmp_path / "x.safetensors"), 1.0)
    found = dict(adapted_layers(model.denoiser, "policy"))
    assert found.keys() == {*NAMES["lora_unet_double_blocks_0_img_attn_qkv"], f"{DOUBLE}.attn.to_add_out"}
    fused = tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"]
    key = fused[32:64] @ tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"]
    torch.testing.assert_close(found[f"{DOUBLE}.attn.to_k"].get_delta_weight("policy").detach(), key)

    narrow = {name: tensor[:, :16].contiguous() if "lora_A" in name else tensor for name, tensor in tensors.items()}
    save_file(narrow, tmp_path / "y.safetensors")
    with pytest.raises(ModelError, match="is not a LoRA for this model"):
        load_foreign_lora(load_tiny(klein, image_size=SIZE), str(tmp_path / "y.safetensors"), 1.0)


def test_what_is_recommended(klein, base):
    found = recommend(str(klein), revision=None)
    assert (found.steps, found.guidance_scale, found.image_size) == (4, 1.0, (1024, 1024))
    assert found.source.endswith("FLUX.2-klein-4B")
    found = recommend(str(base), revision=None)
    assert (found.steps, found.guidance_scale) == (50, 4.0)
    assert found.source.endswith("FLUX.2-klein-base-4B")


def test_comfyui_has_a_scheduler_of_its_own(klein):
    assert "Flux2Scheduler" in FAMILY.names.comfyui(load_tiny(klein).pipeline, 1.0)["scheduler"]


def test_prompts_that_are_cut_are_counted(klein):
    model = load_tiny(klein)
    count, room = model.count_cut_prompts(["cat", "cat " * 600])
    assert count == 1
    assert 400 < room < 512


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_json(f / "transformer/config.json", guidance_embeds=True), "takes its guidance as a number"),
        (lambda f: (f / "tokenizer/chat_template.jinja").unlink(), "its tokenizer has no chat template"),
        (
            lambda f: edit_json(f / "model_index.json", transformer=["diffusers", "Flux9Transformer"]),
            "is of no family",
        ),
        (
            lambda f: edit_json(
                f / "model_index.json", vae=["diffusers", "AutoencoderKLFlux9"], _diffusers_version="9.1"
            ),
            r"its vae is a AutoencoderKLFlux9, which diffusers \S+ here does not know; it was saved by diffusers 9\.1",
        ),
    ],
)
def test_a_pipeline_that_cannot_be_drawn_is_one_line(klein, tmp_path, damage, message):
    folder = tmp_path / "klein"
    shutil.copytree(klein, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load_tiny(folder)
    assert "\n" not in str(raised.value)


def test_a_size_that_cannot_be_drawn_is_one_line(klein):
    with pytest.raises(ModelError, match="images of 18 x 16 pixels: this model's are multiples of 4 pixels"):
        load_tiny(klein, image_size=(16, 18))
