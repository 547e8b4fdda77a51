"""LCM-LoRA and TCD-LoRA fused into a plain pipeline, and the run's own adapter on top."""

import shutil

import diffusers
import pytest
import torch
from model_helpers import MODULES, attach_tiny, shake_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import build_sd, build_sdxl, save_distilled_lora

from rlcm_cli.errors import ModelError
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import DTYPES, load_model
from rlcm_cli.models.lora import base_model, load_foreign_lora, load_lora, lora_parameters, save_lora

PIPELINES = {"sd": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}
BUILDERS = {"sd": build_sd, "sdxl": build_sdxl}
LORA_FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request, tmp_path_factory):
    return BUILDERS[request.param](tmp_path_factory.mktemp("models") / request.param)


def load_plain(folder, dtype="float32"):
    with quiet_libraries():
        return PIPELINES[folder.name].from_pretrained(folder, torch_dtype=DTYPES[dtype])


@pytest.fixture(scope="module", params=["diffusers", "kohya"])
def lora(request, folder, tmp_path_factory):
    return save_distilled_lora(
        load_plain(folder), tmp_path_factory.mktemp(request.param), kohya=request.param == "kohya"
    )


def load(folder, lora=None, dtype="float32", **settings):
    return load_model(
        str(folder), revision=None, dtype=dtype, device="cpu", distilled_lora=lora and str(lora), **settings
    )


def predict(model, guidance_scale=3.0):
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        return model.predict(latents, torch.tensor([999, 499]), model.encode_prompts(["cat", "dog"]), guidance_scale)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fused_weights_are_those_of_diffusers(folder, lora, dtype):
    model, plain = load(folder, lora, dtype), load_plain(folder, dtype)
    with quiet_libraries():
        plain.load_lora_weights(lora.parent, weight_name=lora.name)
        plain.fuse_lora()
        plain.unload_lora_weights()
    expected = plain.unet.state_dict()
    assert list(model.denoiser.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.denoiser.state_dict().items())
    assert (predict(model) - predict(load(folder, dtype=dtype))).abs().max() > 0.01


def test_fused_weights_predict_as_the_adapter_beside_the_weights(folder, lora):
    unfused = load(folder, sampler="lcm")
    load_foreign_lora(unfused, str(lora), 1.0)
    torch.testing.assert_close(predict(load(folder, lora)), predict(unfused), rtol=0, atol=1e-4)


def test_no_trace_of_the_lora_stays(folder, lora):
    model, untouched = load(folder, lora), load(folder)
    assert not hasattr(model.denoiser, "peft_config")
    assert model.pipeline.get_list_adapters() == {}
    assert model.pipeline.num_fused_loras == 0
    assert [name for name, _ in model.denoiser.named_modules()] == [
        name for name, _ in untouched.denoiser.named_modules()
    ]
    assert not any(p.requires_grad for p in model.denoiser.parameters())


def test_the_digest_covers_the_lora(folder, lora, tmp_path):
    digest = load(folder, lora).digest
    assert load(folder).digest != digest
    shutil.copy(lora, tmp_path)
    assert load(folder, tmp_path).digest == digest, "wherever the file lies, and named by its folder"
    tensors = load_file(lora)
    name = sorted(tensors)[-1]
    last = tensors[name].flatten()[-1:]
    last.copy_(torch.nextafter(last, torch.tensor(9.0)))
    with safe_open(lora, "pt") as file:
        save_file(tensors, tmp_path / lora.name, metadata=file.metadata())
    assert load(folder, tmp_path).digest != digest


def test_the_digest_covers_the_strength_of_the_lora(folder, tmp_path):
    file = save_distilled_lora(load_plain(folder), tmp_path, kohya=True)
    digest, tensors = load(folder, file).digest, load_file(file)
    alpha = next(name for name in tensors if name.endswith(".alpha"))
    save_file({**tensors, alpha: torch.tensor(4.0)}, file)
    assert load(folder, file).digest != digest


def test_a_run_trains_its_own_adapter_beside_the_fused_one(folder, lora, tmp_path):
    model = load(folder, lora)
    fused = predict(model)
    attach_tiny(model)
    modules = {name.partition(".lora_")[0] for name in lora_parameters(model)}
    assert modules == {name for name, _ in load(folder).denoiser.named_modules() if name.endswith(MODULES)}
    shake_lora(model)
    adapted = predict(model)
    assert not torch.equal(adapted, fused)
    with base_model(model):
        assert torch.equal(predict(model), fused)

    save_lora(model, tmp_path)
    again = load(folder, lora)
    attach_tiny(again, run_seed=9)
    load_lora(again, load_file(tmp_path / LORA_FILE), "digest")
    assert torch.equal(predict(again), adapted)

    foreign = load(folder, lora)
    load_foreign_lora(foreign, str(tmp_path / LORA_FILE), 1.0)
    assert torch.equal(predict(foreign), adapted)


def test_plain_diffusers_reproduces_the_adapter_of_a_run(folder, tmp_path):
    """A LoRA of any make of model loads with `load_lora_weights`, at its full strength."""
    model, plain = load(folder), load_plain(folder)
    attach_tiny(model)
    shake_lora(model)
    save_lora(model, tmp_path)
    assert all(name.startswith("unet.") for name in load_file(tmp_path / LORA_FILE))
    with quiet_libraries():
        plain.load_lora_weights(tmp_path)
    adapted = predict(model)
    model.pipeline.unet = plain.unet
    assert torch.equal(predict(model), adapted)


# What is refused


def assert_refused(folder, place, pattern):
    with pytest.raises(ModelError, match=pattern) as caught:
        load(folder, place)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lora_that_is_not_there(folder):
    assert_refused(folder, "nobody/lcm-lora", "is not here and could not be loaded from the hub")


def test_a_lora_of_another_make_of_model(folder, tmp_path):
    other = "sdxl" if folder.name == "sd" else "sd"
    plain = PIPELINES[other].from_pretrained(BUILDERS[other](tmp_path / other))
    assert_refused(folder, save_distilled_lora(plain, tmp_path / "lora"), "is not a LoRA for this model")


def test_a_lora_that_binds_nothing(folder, tmp_path):
    tensors = {"unet.nothing.lora_A.weight": torch.ones(2, 16), "unet.nothing.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, tmp_path / LORA_FILE)
    assert_refused(folder, tmp_path / LORA_FILE, "LoRA")


def test_a_lora_with_nan(folder, lora, tmp_path):
    copy = shutil.copy(lora, tmp_path / LORA_FILE)
    tensors = load_file(copy)
    name = next(name for name in tensors if "alpha" not in name)
    tensors[name][:] = torch.nan
    save_file(tensors, copy)
    assert_refused(folder, copy, "values that are not finite")
