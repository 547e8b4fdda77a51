"""Z-Image: what is particular to it."""

from __future__ import annotations

import shutil

import pytest
import torch
from model_helpers import draw, edit_json, load_tiny
from safetensors.torch import save_file
from tiny_transformers import build_z_image
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
from rlcm_cli.families.z_image import FAMILY, LORA_TARGETS
from rlcm_cli.models.lora import fuse_lora, load_foreign_lora
from rlcm_cli.models.lora_binding import adapted_layers
from rlcm_cli.models.parts import recommend

BLOCKS = ("layers.0", "layers.1", "noise_refiner.0", "context_refiner.0")
NAMES = {
    f"lora_unet_{block.replace('.', '_')}_{ending}": [f"{block}.{name}" for name in names]
    for block in BLOCKS
    for ending, names in {
        "attention_qkv": ["attention.to_q", "attention.to_k", "attention.to_v"],
        "attention_out": ["attention.to_out.0"],
        "feed_forward_w1": ["feed_forward.w1"],
        "feed_forward_w2": ["feed_forward.w2"],
        "feed_forward_w3": ["feed_forward.w3"],
        **({} if block == "context_refiner.0" else {"adaLN_modulation_0": ["adaLN_modulation.0"]}),
    }.items()
} | {
    "lora_unet_cap_embedder_1": ["cap_embedder.1"],
    "lora_unet_t_embedder_mlp_0": ["t_embedder.mlp.0"],
    "lora_unet_t_embedder_mlp_2": ["t_embedder.mlp.2"],
}
"""As `model_lora_keys_unet` of ComfyUI (comfy/lora.py) has them, of every weight of its own model; their rows are told
by `z_image_to_diffusers` (comfy/utils.py)."""


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    return build_z_image(tmp_path_factory.mktemp("z") / "turbo")


@pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (8, 0.0), (3, 2.5)])
def test_it_draws_as_the_pipeline(turbo, steps, guidance):
    assert largest_difference(*draw_both(turbo, steps=steps, guidance_scale=guidance)) <= 1


def test_eight_levels_are_the_published_ones(turbo):
    levels = load_tiny(turbo).noise.sigmas(8, None)
    wanted = [1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0.0]
    assert levels.tolist() == pytest.approx(wanted, abs=1e-4)


def test_guidance_counts_from_0(turbo):
    model = load_tiny(turbo, image_size=SIZE)
    assert [model.count_predictions(scale) for scale in (0.0, 0.5, 4.0)] == [1, 2, 2]
    latents, times = torch.randn(2, *model.latent_shape), torch.full((2,), 700.0, dtype=torch.float64)
    conditioning = model.encode_prompts(PROMPTS)
    with torch.no_grad():
        none, half, whole = (model.predict(latents, times, conditioning, scale) for scale in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (none + whole) / 2, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(none, whole, atol=1e-3)


def test_texts_keep_their_lengths_and_time_runs_upwards(turbo, monkeypatch):
    model = load_tiny(turbo, image_size=SIZE)
    conditioning = model.encode_prompts(PROMPTS)
    lengths = conditioning["prompt_mask"].sum(1).tolist()
    assert lengths[0] < lengths[1] == conditioning["prompt_embeds"].shape[1]
    assert not conditioning["prompt_embeds"][0, lengths[0] :].any()
    calls = record_calls(model, monkeypatch)
    with torch.no_grad():
        both = model.predict(torch.ones(2, *model.latent_shape), torch.tensor([1000.0, 250.0]), conditioning, 0.0)
    fed, times, texts = (calls[0][number] for number in range(3))
    assert [len(text) for text in texts] == lengths
    assert times.tolist() == [0.0, 0.75]
    assert [tuple(image.shape) for image in fed] == [(4, 1, 8, 12)] * 2
    alone = model.encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        one = model.predict(torch.ones(1, *model.latent_shape), torch.tensor([1000.0]), alone, 0.0)
    torch.testing.assert_close(both[:1], one, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_the_pipeline(turbo):
    """Whose latents stay in float32 between the calls; here they are kept as the transformer is fed them."""
    one, other = draw_both(turbo, steps=8, guidance_scale=0.0, dtype="bfloat16")
    assert (one.int() - other.int()).abs().float().mean() < 2


def test_comfyui_finds_the_layers(turbo, tmp_path):
    others = ("w1", "w2", "w3", "0.adaLN_modulation.0", "1.adaLN_modulation.0", "cap_embedder.1", "mlp.0", "mlp.2")
    check_comfyui_names(turbo, tmp_path, NAMES, [*LORA_TARGETS, *others])


def test_a_lora_of_some_of_the_projections_is_written_for_comfyui(turbo, tmp_path):
    names = {key: names for key, names in NAMES.items() if key.endswith("qkv")}
    check_comfyui_names(turbo, tmp_path, names, ["to_q"])


def test_a_layer_without_a_name_elsewhere_is_one_line(turbo, tmp_path):
    with pytest.raises(ModelError, match=r"module for all_final_layer\.2-1\.linear, which kohya's format has no name"):
        check_comfyui_names(turbo, tmp_path, {}, ["all_final_layer.2-1.linear"])


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_a_lora_in_other_names_is_read(turbo, tmp_path, prefix):
    name, alpha = f"{prefix}layers.1.feed_forward.w2", 8.0
    down, up = torch.randn(2, 64), torch.randn(24, 2)
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)},
        tmp_path / "x.safetensors",
    )
    model = load_tiny(turbo, image_size=SIZE)
    before = model.denoiser.layers[1].feed_forward.w2.weight.clone()
    load_foreign_lora(model, str(tmp_path / "x.safetensors"), 1.0)
    ((found, layer),) = adapted_layers(model.denoiser, "policy")
    assert found == "layers.1.feed_forward.w2"
    torch.testing.assert_close(layer.get_delta_weight("policy").detach(), alpha / 2 * up @ down, rtol=1e-5, atol=1e-5)

    model = load_tiny(turbo, image_size=SIZE)
    fuse_lora(model.pipeline, FAMILY, str(tmp_path / "x.safetensors"))
    after = model.denoiser.layers[1].feed_forward.w2.weight
    torch.testing.assert_close(after, before + alpha / 2 * up @ down, rtol=1e-5, atol=1e-5)


def test_what_is_recommended(turbo, tmp_path):
    found = recommend(str(turbo), revision=None)
    assert (found.steps, found.guidance_scale, found.source.rpartition("/")[2]) == (8, 0.0, "Z-Image-Turbo")
    found = recommend(str(build_z_image(tmp_path / "base", shift=6.0)), revision=None)
    assert (found.steps, found.guidance_scale, found.source.rpartition("/")[2]) == (50, 4.0, "Z-Image")


def test_comfyui_counts_guidance_from_1(turbo):
    pipeline = load_tiny(turbo).pipeline
    assert FAMILY.names.comfyui(pipeline, 0.0) == {"ModelSamplingAuraFlow": "shift 3", "cfg": "1"}
    assert FAMILY.names.comfyui(pipeline, 4.0)["cfg"] == "5"


def test_prompts_that_are_cut_are_counted(turbo):
    count, room = load_tiny(turbo).count_cut_prompts(["cat", "cat " * 600])
    assert count == 1
    assert 400 < room < 512


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_json(f / "transformer/config.json", siglip_feat_dim=8), "is conditioned on images too"),
        (lambda f: (f / "tokenizer/chat_template.jinja").unlink(), "its tokenizer has no chat template"),
        (lambda f: edit_json(f / "vae/config.json", scaling_factor=0), "cannot scale latents of 4 channels"),
    ],
)
def test_a_pipeline_that_cannot_be_drawn_is_one_line(turbo, tmp_path, damage, message):
    folder = tmp_path / "z"
    shutil.copytree(turbo, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load_tiny(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("size", "message"),
    [((16, 18), "multiples of 4 pixels"), ((16, 4096), "at most 128 wide and 128 high; choose a smaller size")],
)
def test_a_size_that_cannot_be_drawn_is_one_line(turbo, size, message):
    with pytest.raises(ModelError, match=message):
        load_tiny(turbo, image_size=size)


def test_draws_differ_with_their_texts(turbo):
    images = draw(load_tiny(turbo, image_size=SIZE), PROMPTS, SEEDS[:1] * 2, guidance_scale=0.0).images
    assert largest_difference(images[0], images[1]) > 1
