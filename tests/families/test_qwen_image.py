"""Qwen-Image: what is particular to it."""

from __future__ import annotations

import shutil

import pytest
import torch
from model_helpers import draw, edit_json, load_tiny
from safetensors.torch import save_file
from tiny_transformers import build_qwen_image
from transformer_families import (
    PROMPTS,
    SEEDS,
    SIZE,
    check_comfyui_names,
    draw_both,
    largest_difference,
    record_calls,
)

from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.families.qwen_image import FAMILY, LORA_TARGETS
from rlcm_cli.models.export import describe_call, use_scheduler
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.parts import recommend
from rlcm_cli.samplers.flow import FlowSettings

NAMES = {
    f"lora_unet_transformer_blocks_{block}_{name.replace('.', '_')}": [f"transformer_blocks.{block}.{name}"]
    for block in range(2)
    for name in (
        *(f"attn.{end}" for end in LORA_TARGETS),
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
        "img_mod.1",
        "txt_mod.1",
    )
}
"""As `model_lora_keys_unet` of ComfyUI (comfy/lora.py) has them, of every weight of its own model
(comfy/ldm/qwen_image/model.py), whose layers are diffusers'."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return build_qwen_image(tmp_path_factory.mktemp("qwen") / "qwen", terminal=0.02)


@pytest.mark.parametrize(("steps", "guidance"), [(2, 1.0), (8, 1.0), (3, 4.0)])
def test_it_draws_as_the_pipeline(qwen, steps, guidance):
    assert largest_difference(*draw_both(qwen, steps=steps, guidance_scale=guidance)) <= 1


@pytest.mark.parametrize("steps", [1, 4])
def test_the_shift_of_the_lightning_lora(qwen, steps):
    assert largest_difference(*draw_both(qwen, steps=steps, guidance_scale=1.0, shift=3.0)) <= 1
    levels = load_tiny(qwen).noise.sigmas(4, None, 3.0)
    assert levels.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_one_step_without_it_is_one_line(qwen):
    with pytest.raises(ConfigError, match=r"shift_terminal.*use --steps 2 or more"):
        draw(load_tiny(qwen, image_size=SIZE), PROMPTS, SEEDS, steps=1)


def test_bfloat16_rounds_where_the_pipeline_does(qwen):
    one, other = draw_both(qwen, steps=4, guidance_scale=1.0, dtype="bfloat16")
    assert (one.int() - other.int()).abs().float().mean() < 1


def test_a_guided_prediction_has_the_length_of_the_one_with_the_prompt(qwen):
    model = load_tiny(qwen, image_size=SIZE)
    assert [model.count_predictions(scale) for scale in (0.0, 1.0, 1.5)] == [1, 1, 2]
    latents, times = torch.randn(2, *model.latent_shape), torch.tensor([900.0, 400.0])
    conditioning = model.encode_prompts(PROMPTS)
    with torch.no_grad():
        plain, guided = (model.predict(latents, times, conditioning, scale) for scale in (1.0, 4.0))
    lengths = [
        output.view(2, 4, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).norm(dim=-1) for output in (plain, guided)
    ]
    torch.testing.assert_close(*lengths, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, guided, atol=1e-3)


def test_texts_are_masked_where_their_lengths_differ(qwen, monkeypatch):
    model = load_tiny(qwen, image_size=SIZE)
    conditioning = model.encode_prompts(PROMPTS)
    lengths = conditioning["prompt_mask"].sum(1).tolist()
    assert lengths[0] < lengths[1]
    calls = record_calls(model, monkeypatch)
    latents = torch.ones(2, *model.latent_shape)
    with torch.no_grad():
        both = model.predict(latents, torch.tensor([1000.0, 250.0]), conditioning, 1.0)
        shorter = {name: table[:1] for name, table in conditioning.items()}
        one = model.predict(latents[:1], torch.tensor([1000.0]), shorter, 1.0)
    assert [call["encoder_hidden_states"].shape[1] for call in calls] == [lengths[1], lengths[0]]
    assert calls[0]["encoder_hidden_states_mask"].sum(1).tolist() == lengths
    assert calls[1]["encoder_hidden_states_mask"] is None
    assert calls[0]["timestep"].tolist() == [1.0, 0.25]
    assert calls[0]["img_shapes"] == [[(1, 4, 6)]] * 2
    torch.testing.assert_close(both[:1], one, rtol=1e-4, atol=1e-5)


def test_an_image_is_encoded_to_the_latents_that_it_is_decoded_from(qwen):
    model = load_tiny(qwen, image_size=SIZE)
    images = torch.randint(0, 256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    vae = model.pipeline.vae
    with torch.no_grad():
        encoded = vae.encode((images.float() / 127.5 - 1).unsqueeze(2)).latent_dist.mode()[:, :, 0]
    statistics = vae.config.latents_mean, vae.config.latents_std
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in statistics)
    torch.testing.assert_close(model.encode_images(images), (encoded - mean) / std, rtol=1e-5, atol=1e-5)
    assert encoded.shape[1:] == model.latent_shape


def test_comfyui_finds_the_layers(qwen, tmp_path):
    others = ("net.0.proj", "net.2", "img_mod.1", "txt_mod.1")
    check_comfyui_names(qwen, tmp_path, NAMES, [*LORA_TARGETS, *others])


def save_lightning(folder, model):
    """Save a LoRA with the keys of lightx2v's: the layers' own names, kohya's matrices, an alpha each."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, layer in model.denoiser.named_modules():
        if name.endswith(("attn.to_q", "attn.add_k_proj", "img_mlp.net.2")):
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, layer.in_features, generator=generator)
            tensors[f"{name}.lora_up.weight"] = 0.1 * torch.randn(layer.out_features, 2, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    file = folder / "Qwen-Image-Lightning-4steps-V2.0.safetensors"
    save_file(tensors, file)
    return file, tensors


def test_the_lightning_lora_is_fused_at_its_strength(qwen, tmp_path):
    plain = load_tiny(qwen)
    file, tensors = save_lightning(tmp_path, plain)
    model = load_model(str(qwen), revision=None, dtype="float32", device="cpu", distilled_lora=str(file))
    assert model.digest != plain.digest
    for name, layer in model.denoiser.named_modules():
        if f"{name}.alpha" in tensors:
            change = 0.5 * tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
            wanted = plain.denoiser.get_submodule(name).weight + change
            torch.testing.assert_close(layer.weight, wanted, rtol=1e-5, atol=1e-5)
    assert not hasattr(model.denoiser, "peft_config")


def test_what_is_recommended(qwen):
    found = recommend(str(qwen), revision=None)
    assert (found.steps, found.guidance_scale, found.image_size, found.drawing) == (50, 4.0, (1328, 1328), {})
    for lora, steps in (("x/Qwen-Image-Lightning-4steps-V2.0.safetensors", 4), ("lightx2v/Qwen-Image-Lightning", 8)):
        found = recommend(str(qwen), revision=None, distilled_lora=lora)
        assert (found.steps, found.guidance_scale, found.drawing) == (steps, 1.0, {"shift": 3.0})


def test_comfyui_is_told_the_shift_of_the_lightning_lora(qwen):
    model = load_tiny(qwen)
    assert FAMILY.names.comfyui(model.pipeline, 1.0) == {}
    call = describe_call(model, FlowSettings(eta=0.0, shift=3.0), steps=4, guidance_scale=1.0)
    assert "negative_prompt" not in call.arguments
    assert describe_call(model, FlowSettings(eta=0.0), steps=4, guidance_scale=2.0).arguments["negative_prompt"] == " "
    use_scheduler(model.pipeline, call)
    assert FAMILY.names.comfyui(model.pipeline, 1.0) == {"ModelSamplingAuraFlow": "shift 3"}


def test_prompts_that_are_cut_are_counted(qwen):
    count, room = load_tiny(qwen).count_cut_prompts(["cat", "cat " * 600])
    assert count == 1
    assert 300 < room < 512


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: edit_json(f / "transformer/config.json", zero_cond_t=True),
            r"another make of Qwen-Image \(zero",
        ),
        (lambda f: edit_json(f / "vae/config.json", latents_std=[1.0]), "cannot scale latents of 4 channels"),
        (lambda f: edit_json(f / "scheduler/scheduler_config.json", invert_sigmas=True), "its noise levels rise"),
    ],
)
def test_a_pipeline_that_cannot_be_drawn_is_one_line(qwen, tmp_path, damage, message):
    folder = tmp_path / "qwen"
    shutil.copytree(qwen, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load_tiny(folder)
    assert "\n" not in str(raised.value)


def test_another_sampler_is_one_line(qwen):
    with pytest.raises(ModelError, match="is a model of flow matching, which the sampler 'ddim' cannot draw"):
        load_model(str(qwen), revision=None, dtype="float32", device="cpu", sampler="ddim")


def test_a_pipeline_that_edits_images_is_another():
    index = {"transformer": ["diffusers", "QwenImageTransformer2DModel"]}
    assert FAMILY.recognise(index)
    assert not FAMILY.recognise({**index, "processor": ["transformers", "Qwen2VLProcessor"]})
