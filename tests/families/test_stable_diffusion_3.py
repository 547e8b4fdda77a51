"""Stable Diffusion 3 and 3.5: what is particular to them."""

from __future__ import annotations

import functools
import shutil

import diffusers
import pytest
import torch
from model_helpers import attach_tiny, draw, edit_json, load_tiny, shake_lora
from safetensors.torch import load_file
from tiny_t5_pipelines import build_sd3
from transformer_families import largest_difference

from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ModelError
from rlcm_cli.families import Configs
from rlcm_cli.families.stable_diffusion_3 import FAMILY, LARGE, LORA_TARGETS
from rlcm_cli.models.export import (
    apply_base,
    describe_call,
    read_back_pipeline,
    read_fused,
    write_kohya,
    write_pipeline,
)
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora_binding import adapted_layers, apply_weight
from rlcm_cli.models.parts import recommend

BLOCK = "joint_blocks.{}"
NAMES = {
    "attn_to_q": ("x_block.attn.qkv", 0),
    "attn_to_k": ("x_block.attn.qkv", 1),
    "attn_to_v": ("x_block.attn.qkv", 2),
    "attn_to_out_0": ("x_block.attn.proj", None),
    "attn_add_q_proj": ("context_block.attn.qkv", 0),
    "attn_add_k_proj": ("context_block.attn.qkv", 1),
    "attn_add_v_proj": ("context_block.attn.qkv", 2),
    "attn_to_add_out": ("context_block.attn.proj", None),
    "attn2_to_q": ("x_block.attn2.qkv", 0),
    "attn2_to_k": ("x_block.attn2.qkv", 1),
    "attn2_to_v": ("x_block.attn2.qkv", 2),
    "attn2_to_out_0": ("x_block.attn2.proj", None),
    "ff_net_0_proj": ("x_block.mlp.fc1", None),
    "ff_net_2": ("x_block.mlp.fc2", None),
    "ff_context_net_0_proj": ("context_block.mlp.fc1", None),
    "ff_context_net_2": ("context_block.mlp.fc2", None),
}
"""Layer of a block, in a key `lora_transformer_transformer_blocks_N_…` → its name in ComfyUI's model, and which third
of the rows there it is: by `model_lora_keys_unet` (comfy/lora.py) and `mmdit_to_diffusers` (comfy/utils.py)."""
PROMPTS, SEEDS = ["cat", "a dog on blue"], [5, 7]


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    return build_sd3(tmp_path_factory.mktemp("sd3") / "medium")


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory):
    return build_sd3(tmp_path_factory.mktemp("sd3") / "without", t5=False, new=False)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """As some finetunes have it: the shift belongs to the size of the image."""
    scheduler = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
    return build_sd3(tmp_path_factory.mktemp("sd3") / "dynamic", scheduler=scheduler)


@pytest.mark.parametrize("name", ["medium", "dynamic"])
def test_latents_are_those_of_the_pipeline_at_any_size_and_number_of_steps(request, name):
    folder = request.getfixturevalue(name)
    with quiet_libraries():
        plain = diffusers.StableDiffusion3Pipeline.from_pretrained(folder)
        plain.set_progress_bar_config(disable=True)
    model = load_tiny(folder)
    settings = model.sampler.drawing_settings()
    for size, steps, guidance_scale in (((16, 16), 8, 4.0), ((16, 24), 1, 0.0), ((32, 16), 4, 1.0)):
        model.set_image_size(*size)
        call = describe_call(model, settings, steps=steps, guidance_scale=guidance_scale)
        expected = plain(
            PROMPTS,
            generator=[seed_generator(seed) for seed in SEEDS],
            height=size[0],
            width=size[1],
            output_type="latent",
            **call.arguments,
        ).images
        drawn = draw(model, PROMPTS, SEEDS, steps=steps, guidance_scale=guidance_scale, sampler=settings)
        found = drawn.final_latents
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_without_t5_zeros_are_in_its_place(without_t5, medium):
    model = load_tiny(without_t5)
    assert model.pipeline.text_encoder_3 is None
    rows = model.encode_prompts(["cat"])
    assert rows["prompt_embeds"].shape == (1, 24 + 256, 48)
    assert not rows["prompt_embeds"][:, 24:].any()
    assert load_tiny(medium).encode_prompts(["cat"])["prompt_embeds"][:, 24:].any()
    assert rows["negative_pooled_prompt_embeds"].shape == rows["pooled_prompt_embeds"].shape == (1, 36)
    assert model.digest != load_tiny(medium).digest


def test_without_t5_a_whole_pipeline_is_exported(without_t5, tmp_path):
    model = load_tiny(without_t5)
    images = draw(model, PROMPTS, SEEDS, sampler=model.sampler.drawing_settings()).images
    folder = write_pipeline(model, tmp_path / "out", torch.float32)
    pipeline = read_back_pipeline(folder, torch.device("cpu"))
    assert pipeline.text_encoder_3 is None
    again = load_tiny(folder)
    assert torch.equal(draw(again, PROMPTS, SEEDS, sampler=again.sampler.drawing_settings()).images, images)


def test_prompts_are_as_long_as_t5_reads_or_without_it_clip(medium, without_t5):
    long = "a dog on blue " * 100
    assert load_tiny(medium).count_cut_prompts(["cat", long]) == (1, 256)
    assert load_tiny(medium).count_cut_prompts(["cat " * 30])[0] == 0
    assert load_tiny(without_t5).count_cut_prompts(["cat", "cat " * 30]) == (1, 24)


def test_t5_computes_in_bfloat16_where_float16_is_asked_for(medium):
    model = load_tiny(medium, "float16")
    assert model.pipeline.text_encoder_3.dtype == torch.bfloat16
    assert (model.denoiser.dtype, model.encode_prompts(["cat"])["prompt_embeds"].dtype) == (torch.float16,) * 2


@pytest.mark.parametrize("name", ["medium", "without_t5"])
def test_comfyui_finds_the_layers(request, name, tmp_path):
    """Its own model has the weights of queries, keys and values in one: each third gets its change."""
    folder = request.getfixturevalue(name)
    model = load_tiny(folder)
    attach_tiny(model, target_modules=[*LORA_TARGETS, "net.0.proj", "net.2"])
    shake_lora(model)
    tensors = load_file(write_kohya(model, tmp_path / "x.safetensors", torch.float32, title="x"))
    layers = list(dict(adapted_layers(model.denoiser, "policy")))
    width = model.denoiser.inner_dim
    changes: dict[str, dict[int | None, torch.Tensor]] = {}
    for key in {key.partition(".")[0] for key in tensors}:
        block, _, layer = key.removeprefix("lora_transformer_transformer_blocks_").partition("_")
        native, third = NAMES[layer]
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        change = tensors[f"{key}.alpha"] / len(down) * up @ down
        assert third is None or len(change) == width
        changes.setdefault(f"{BLOCK.format(block)}.{native}", {})[third] = change
    assert sum(map(len, changes.values())) == len(layers)
    assert all(set(found) in ({0, 1, 2}, {None}) for found in changes.values())

    base = apply_base(load_tiny(folder), layers)
    fused = read_fused(write_pipeline(model, tmp_path / "out", torch.float32), "transformer", layers)
    for name in layers:
        _, block, layer = name.split(".", 2)
        native, third = NAMES[layer.replace(".", "_")]
        change = changes[f"{BLOCK.format(block)}.{native}"][third]
        torch.testing.assert_close(base[name] + apply_weight(change), fused[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "transformer", "steps", "guidance_scale", "page"),
    [
        ("stabilityai/stable-diffusion-3-medium-diffusers", {}, 28, 7.0, "stable-diffusion-3-medium-diffusers"),
        ("mine", {"qk_norm": "rms_norm", "dual_attention_layers": [0]}, 40, 4.5, "stable-diffusion-3.5-medium"),
        ("mine", LARGE, 28, 3.5, "stable-diffusion-3.5-large"),
        ("turbo/mine", LARGE, 28, 3.5, "stable-diffusion-3.5-large"),
        ("models/SD3.5-Large-Turbo", LARGE, 4, 0.0, "stable-diffusion-3.5-large-turbo"),
        ("mine", {**LARGE, "_name_or_path": "x/sd35-turbo"}, 4, 0.0, "stable-diffusion-3.5-large-turbo"),
    ],
)
def test_what_is_recommended(name, transformer, steps, guidance_scale, page):
    found = FAMILY.scheduling.recommend(name, Configs({}, {"sample_size": 128, **transformer}, None), None)
    assert (found.steps, found.guidance_scale, found.image_size) == (steps, guidance_scale, (1024, 1024))
    assert found.source == f"https://huggingface.co/stabilityai/{page}"
    assert found.training["sample.guidance_scale"] == guidance_scale
    trained = {"sample.steps": 4, "sampler.eta": 0.9} if steps == 4 else {"sample.steps": 10, "sampler.eta": 0.7}
    assert found.training.items() >= trained.items()


def test_guidance_is_distilled_with_a_lora():
    found = FAMILY.scheduling.recommend("mine", Configs({}, LARGE, None), "lora")
    assert (found.sampler, found.steps, found.guidance_scale) == ("flow", 4, 1.0)


def test_a_folder_is_recognised(medium, without_t5):
    assert recommend(str(medium), revision=None).steps == 40
    assert recommend(str(medium), revision=None).image_size is None, "its own, which is tiny"
    assert recommend(str(without_t5), revision=None).steps == 28
    named = [FAMILY.names.describe(load_tiny(folder).pipeline) for folder in (medium, without_t5)]
    assert [one[1]["modelspec.architecture"] for one in named] == [
        "stable-diffusion-3-5-medium/lora",
        "stable-diffusion-3-medium/lora",
    ]


def test_another_sampler_is_one_line(medium):
    with pytest.raises(ModelError, match="is a model of flow matching, which the sampler 'lcm' cannot draw"):
        recommend(str(medium), revision=None, sampler="lcm")


@pytest.mark.parametrize(("size", "message"), [((16, 18), "multiples of 4 pixels"), ((16, 68), "have at most 64")])
def test_a_size_that_cannot_be_drawn_is_one_line(medium, size, message):
    with pytest.raises(ModelError, match=message):
        load_tiny(medium, image_size=size)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "transformer",
            {"pooled_projection_dim": 40},
            "give 36 numbers of a whole text, and its transformer takes 40",
        ),
        ("transformer", {"joint_attention_dim": 56}, "give vectors of 48 numbers, and its transformer takes 56"),
        ("transformer", {"joint_attention_dim": 32}, "give vectors of 40 numbers, and its transformer takes 32"),
        ("transformer", {"out_channels": 8}, "takes 4 channels and gives 8"),
        ("vae", {"shift_factor": "x"}, "shift_factor, latents_mean or latents_std in vae/config.json cannot scale"),
        ("scheduler", {"invert_sigmas": True}, "its noise levels rise"),
    ],
)
def test_a_pipeline_that_cannot_be_drawn_is_one_line(medium, tmp_path, monkeypatch, part, changes, message):
    folder = tmp_path / "sd3"
    shutil.copytree(medium, folder)
    edit_json(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **changes)
    # Weights of other shapes are another fault, which is found before.
    monkeypatch.setattr("rlcm_cli.models.components._check_report", lambda *ignored: None)
    with pytest.raises(ModelError, match=message) as raised:
        load_tiny(folder)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_another_t5_is_one_line(medium, tmp_path):
    folder = tmp_path / "sd3"
    shutil.copytree(medium, folder)
    edit_json(folder / "text_encoder_3/config.json", vocab_size=8)
    with pytest.raises(ModelError, match="tokenizer_3 has 30 tokens, and its text encoder knows 8"):
        load_tiny(folder)


def test_weights_in_several_files_are_read(medium, tmp_path):
    folder = tmp_path / "sd3"
    shutil.copytree(medium, folder)
    pipeline = load_tiny(medium).pipeline
    save = {
        "text_encoder_3": pipeline.text_encoder_3.save_pretrained,
        "transformer": functools.partial(pipeline.transformer.save_pretrained, safe_serialization=True),
    }
    for part, write in save.items():
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        with quiet_libraries():
            write(folder / part, max_shard_size="20KB")
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    assert load_tiny(folder).digest == load_tiny(medium).digest


def test_images_of_one_checkpoint_do_not_depend_on_the_batch(medium):
    one, two = (
        draw(load_tiny(medium), prompts, seeds, sampler=load_tiny(medium).sampler.drawing_settings()).images
        for prompts, seeds in ((PROMPTS, SEEDS), (PROMPTS[:1], SEEDS[:1]))
    )
    assert largest_difference(one[:1], two) <= 1
