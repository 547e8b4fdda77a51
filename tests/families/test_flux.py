"""FLUX.1: what is particular to it."""

from __future__ import annotations

import shutil

import diffusers
import pytest
import torch
from model_helpers import attach_tiny, draw, edit_json, load_tiny, shake_lora
from safetensors.torch import load_file
from tiny_t5_pipelines import build_flux
from transformer_families import draw_both, largest_difference, record_calls

from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ModelError
from rlcm_cli.families import Configs
from rlcm_cli.families.flux import FAMILY, LORA_TARGETS
from rlcm_cli.models.export import apply_base, describe_call, read_fused, write_kohya, write_pipeline
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora_binding import adapted_layers, apply_weight
from rlcm_cli.models.parts import recommend

DOUBLE = {
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.to_out.0": ("img_attn.proj", 0),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.to_add_out": ("txt_attn.proj", 0),
    "ff.net.0.proj": ("img_mlp.0", 0),
    "ff.net.2": ("img_mlp.2", 0),
    "ff_context.net.0.proj": ("txt_mlp.0", 0),
    "ff_context.net.2": ("txt_mlp.2", 0),
}
SINGLE = {
    "attn.to_q": ("linear1", 0),
    "attn.to_k": ("linear1", 1),
    "attn.to_v": ("linear1", 2),
    "proj_mlp": ("linear1", 3),
    "proj_out": ("linear2", 0),
}
"""Layer of a block with two streams, or one → its name in ComfyUI's model, and where its rows begin there, in units of
the transformer's width: by `model_lora_keys_unet` (comfy/lora.py) and `flux_to_diffusers` (comfy/utils.py)."""
PROMPTS, SEEDS = ["cat", "a dog on blue"], [5, 7]
SIZE = (16, 24)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    return build_flux(tmp_path_factory.mktemp("flux") / "schnell")


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    return build_flux(tmp_path_factory.mktemp("flux") / "dev", guided=True)


@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_latents_are_those_of_the_pipeline_at_any_size_and_number_of_steps(request, name):
    folder = request.getfixturevalue(name)
    with quiet_libraries():
        plain = diffusers.FluxPipeline.from_pretrained(folder)
        plain.set_progress_bar_config(disable=True)
    model = load_tiny(folder)
    settings = model.sampler.drawing_settings()
    for size, steps, guidance_scale in (((16, 24), 8, 3.5), ((32, 16), 1, 0.0)):
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
        batch, channels, height, width = drawn.final_latents.shape
        found = plain._pack_latents(drawn.final_latents, batch, channels, height, width)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_levels_are_those_of_the_published_schedulers(schnell, dev):
    assert load_tiny(schnell).noise.sigmas(4, None).tolist() == [1, 0.75, 0.5, 0.25, 0]
    model = load_tiny(dev)
    model.image_size = 256, 256  # as many tokens as 1024 pixels have in the published model: mu is max_shift, 1.15
    shift = torch.tensor(1.15, dtype=torch.float64).exp()
    wanted = [float(shift / (shift + 1 / sigma - 1)) for sigma in (1, 0.75, 0.5, 0.25)]
    assert model.noise.sigmas(4, None)[:-1].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_bfloat16_rounds_where_the_pipeline_does(request, name):
    one, other = draw_both(request.getfixturevalue(name), steps=4, guidance_scale=3.5, dtype="bfloat16")
    assert largest_difference(one, other) <= 24


def test_the_transformer_is_told_times_guidance_and_places(dev, schnell, monkeypatch):
    model = load_tiny(dev, image_size=SIZE)
    calls = record_calls(model, monkeypatch)
    draw(model, PROMPTS, SEEDS, steps=2, guidance_scale=3.5)
    first = calls[0]
    assert first["timestep"].tolist() == [1.0, 1.0]
    assert first["guidance"].tolist() == [3.5, 3.5]
    assert first["hidden_states"].shape == (2, 4 * 6, 16)
    assert first["encoder_hidden_states"].shape == (2, 512, 24)
    assert first["img_ids"][5:8].tolist() == [[0, 0, 5], [0, 1, 0], [0, 1, 1]]
    assert not first["txt_ids"].any()
    assert all(call["img_ids"] is first["img_ids"] for call in calls), "are copied to the device again"
    calls.clear()
    draw(load_tiny(schnell, image_size=SIZE), PROMPTS, SEEDS, steps=2)
    assert calls[0]["guidance"] is None
    assert calls[0]["encoder_hidden_states"].shape == (2, 256, 24)


def test_guidance_is_a_number_for_dev_and_nothing_for_schnell(schnell, dev):
    for folder, embedded in ((schnell, False), (dev, True)):
        model = load_tiny(folder, image_size=SIZE)
        assert model.guided_by_embedding is embedded
        assert [model.count_predictions(scale) for scale in (0.0, 4.0)] == [1, 1]
        images = [draw(model, PROMPTS, SEEDS, guidance_scale=scale).images for scale in (1.0, 8.0)]
        assert torch.equal(*images) is not embedded


def test_prompts_are_as_long_as_the_cards_say(schnell, dev):
    long = "a dog on blue " * 300
    assert load_tiny(schnell).count_cut_prompts(["cat", long]) == (1, 256)
    assert load_tiny(dev).count_cut_prompts(["cat", long]) == (1, 512)


@pytest.mark.parametrize(
    "targets", [LORA_TARGETS, ("net.0.proj", "net.2", "proj_mlp", "0.proj_out", "1.proj_out", *LORA_TARGETS)]
)
def test_comfyui_finds_the_layers(dev, tmp_path, targets):
    """Its own model has the weights of queries, keys and values in one: each part gets its change."""
    model = load_tiny(dev, image_size=SIZE)
    attach_tiny(model, target_modules=targets)
    shake_lora(model)
    tensors = load_file(write_kohya(model, tmp_path / "x.safetensors", torch.float32, title="x"))
    layers = dict(adapted_layers(model.denoiser, "policy"))
    width = model.denoiser.inner_dim
    keys = {}
    for name, layer in layers.items():
        kind, _, rest = name.partition(".")
        native, first = (SINGLE if kind.startswith("single") else DOUBLE)[rest.partition(".")[2]]
        keys[name] = f"lora_transformer_{name.replace('.', '_')}"
        rows = slice(first * width, first * width + layer.out_features)
        place = f"{kind}.{rest.partition('.')[0]}.{native}"
        layers[name] = place, rows
    assert {key.partition(".")[0] for key in tensors} == {*keys.values()}
    whole = {"qkv": 3 * width, "linear1": 7 * width}
    weights: dict[str, torch.Tensor] = {}
    base = load_tiny(dev).denoiser
    for name, (place, rows) in layers.items():
        weight = base.get_submodule(name).weight.detach()
        height = whole.get(place.rpartition(".")[2], len(weight))
        weights.setdefault(place, torch.zeros(height, weight.shape[1]))[rows] += weight
    for name, (place, rows) in layers.items():
        found = {role: tensors[f"{keys[name]}.{role}"] for role in ("lora_up.weight", "lora_down.weight", "alpha")}
        strength = found["alpha"] / len(found["lora_down.weight"])
        weights[place][rows] += strength * found["lora_up.weight"] @ found["lora_down.weight"]
    fused = read_fused(write_pipeline(model, tmp_path / "out", torch.float32), "transformer", [*layers])
    for name, (place, rows) in layers.items():
        torch.testing.assert_close(apply_weight(weights[place][rows]), fused[name], rtol=1e-4, atol=1e-5)
    assert apply_base(load_tiny(dev), layers).keys() == fused.keys()


@pytest.mark.parametrize(
    ("guided", "lora", "steps", "guidance_scale", "trained", "page"),
    [
        (False, None, 4, 0.0, {"sample.steps": 4, "sampler.eta": 0.9}, "FLUX.1-schnell"),
        (True, None, 50, 3.5, {"sample.steps": 6, "sampler.noise": "flow-sde"}, "FLUX.1-dev"),
        (True, "turbo", 8, 3.5, {"sample.steps": 8, "sampler.eta": 0.9}, "FLUX.1-Turbo-Alpha"),
    ],
)
def test_what_is_recommended(guided, lora, steps, guidance_scale, trained, page):
    found = FAMILY.scheduling.recommend("mine", Configs({}, {"guidance_embeds": guided}, None), lora)
    assert (found.steps, found.guidance_scale, found.image_size) == (steps, guidance_scale, (1024, 1024))
    assert found.training.items() >= {"sample.guidance_scale": guidance_scale, **trained}.items()
    assert found.source.endswith(f"/{page}")


def test_other_tools_are_told_the_make(schnell, dev):
    named = [FAMILY.names.describe(load_tiny(folder).pipeline) for folder in (schnell, dev)]
    assert [one[1]["modelspec.architecture"] for one in named] == ["flux-1-schnell/lora", "flux-1-dev/lora"]
    assert [FAMILY.names.comfyui(load_tiny(folder).pipeline, 3.5) for folder in (schnell, dev)] == [
        {},
        {"FluxGuidance": "3.5"},
    ]
    assert recommend(str(schnell), revision=None).steps == 4


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "FluxKontextPipeline"}, "edits images"),
        ("transformer/config.json", {"out_channels": 8}, "takes 16 channels and gives 8"),
        (
            "transformer/config.json",
            {"pooled_projection_dim": 8},
            "text_encoder gives vectors of 16 numbers, .* takes 8",
        ),
        ("transformer/config.json", {"joint_attention_dim": 8}, "text_encoder_2 gives vectors of 24 .* takes 8"),
        ("transformer/config.json", {"in_channels": 32}, "its transformer takes 8; use the vae"),
    ],
)
def test_a_pipeline_that_cannot_be_drawn_is_one_line(schnell, tmp_path, monkeypatch, file, changes, message):
    folder = tmp_path / "flux"
    shutil.copytree(schnell, folder)
    edit_json(folder / file, **changes)
    # Weights of other shapes are another fault, which is found before.
    monkeypatch.setattr("rlcm_cli.models.components._check_report", lambda *ignored: None)
    with pytest.raises(ModelError, match=message) as raised:
        load_tiny(folder)
    assert "\n" not in str(raised.value)


def test_a_size_that_cannot_be_drawn_is_one_line(schnell):
    with pytest.raises(ModelError, match="images of 18 x 16 pixels: this model's are multiples of 4 pixels"):
        load_tiny(schnell, image_size=(16, 18))
