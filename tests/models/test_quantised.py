"""A denoiser in 4 or 8 bits, on a tiny Stable Diffusion: what is refused, and a run from end to end."""

import importlib.util

import pytest
import torch
from command_line import refuse, succeed, write_settings
from model_helpers import attach_tiny, load_tiny, shake_lora

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.learning.log_probs import needs_refresh
from rlcm_cli.models.full import attach_full, denoiser_parameters, load_denoiser
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import LORA_FILE, load_foreign_lora, lora_parameters, save_lora
from rlcm_cli.models.memory import model_bytes
from rlcm_cli.models.quantised import check_quantisation, digest_quantised, quantise_denoiser, quantised_tensors
from rlcm_cli.models.variant import Variant
from rlcm_cli.store.checkpoint import digest_safetensors


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def bits(request):
    return request.param


@pytest.fixture
def model(tiny_lcm, bits):
    return load_model(str(tiny_lcm), revision=None, dtype="float32", device="cpu", variant=Variant(quantize=bits))


def test_its_scales_are_among_its_bytes(model):
    scales = quantised_tensors(model.denoiser)
    before = model_bytes(model)
    model.predict(
        torch.zeros(1, *model.latent_shape), torch.tensor([500]), model.encode_prompts([""]), guidance_scale=1.0
    )
    assert model_bytes(model) == before
    held = {tensor.data_ptr() for tensor in model.denoiser.parameters()}
    assert scales
    assert not held & {tensor.data_ptr() for tensor in scales}


def test_the_digest_tells_how_many_bits_there_are(tiny_lcm, model, bits):
    whole = load_tiny(tiny_lcm)
    assert model.digest == digest_quantised(whole.digest, bits)
    assert len({digest_quantised(whole.digest, kind) for kind in (None, "4bit", "8bit")}) == 3


def test_a_lora_of_the_whole_model_is_loaded(tiny_lcm, model, tmp_path):
    whole = load_tiny(tiny_lcm)
    attach_tiny(whole)
    shake_lora(whole)
    save_lora(whole, tmp_path)
    load_foreign_lora(model, str(tmp_path / LORA_FILE), 1.0)
    latents = torch.randn(1, *model.latent_shape)
    arguments = latents, torch.tensor([500]), model.encode_prompts(["a cat"]), 4.0
    expected = whole.predict(*arguments)
    with torch.no_grad():
        assert (model.predict(*arguments) - expected).abs().mean() < 0.2 * expected.std()
    assert lora_parameters(whole)


def test_a_whole_denoiser_has_no_place_in_it(tiny_lcm, model, bits):
    whole = load_tiny(tiny_lcm)
    attach_full(whole, keep_base_on=torch.device("cpu"))
    with pytest.raises(ModelError, match=rf"in {bits[0]} bits; leave --quantize out"):
        load_denoiser(model, denoiser_parameters(whole), "another")


def test_what_cannot_be_quantised_is_refused(tiny_lcm, model, bits, monkeypatch):
    with pytest.raises(ModelError, match=r"does not compute on the device 'mps'; use --device cuda or cpu"):
        check_quantisation(bits, torch.device("mps"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the package bitsandbytes.*pip install 'rlcm\[quantize\]'"):
        quantise_denoiser(load_tiny(tiny_lcm), bits)
    with pytest.raises(ConfigError, match=r"train.parameters full.*which model.quantize 8bit freezes"):
        parse_config(
            {
                "task": "a",
                "rewards": {"compressibility": 1.0},
                "train": {"parameters": "full"},
                "model": {"quantize": "8bit"},
            }
        )


def test_old_log_probabilities_are_taken_again_where_inputs_have_8_bits():
    values = {"task": "a", "rewards": {"compressibility": 1.0}}
    assert needs_refresh(parse_config({**values, "model": {"quantize": "8bit"}}))
    assert not needs_refresh(parse_config({**values, "model": {"quantize": "4bit"}}))


def test_a_run_is_trained_resumed_drawn_and_exported(tiny_lcm, bits, tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = write_settings(tmp_path, tiny_lcm)
    given = "--config", settings, "--quantize", bits, "-q"
    for run, iterations in ((whole, 2), (stopped, 1), (stopped, 2)):
        succeed(capsys, "loop", "--run", run, "--iterations", iterations, *given)
    one, other = (run / "checkpoints" / "000002" / LORA_FILE for run in (whole, stopped))
    assert digest_safetensors(one) == digest_safetensors(other)

    first, again = tmp_path / "first", tmp_path / "again"
    succeed(capsys, "generate", "--lora", whole, "--prompt", "a cat", "--out", first, "-q")
    (picture,) = first.glob("*cat*.png")
    succeed(capsys, "generate", "--from-image", picture, "--lora", whole, "--out", again, "-q")
    assert (again / picture.name).read_bytes() == picture.read_bytes()

    # Drawn with all bits, as other tools do.
    succeed(capsys, "export", whole, "--out", tmp_path / "export", "--device", "cpu", "-q")
    succeed(capsys, "export", whole, "--format", "pipeline", "--out", tmp_path / "all", "--device", "cpu", "-q")
    other_bits = {"4bit": "8bit", "8bit": "4bit"}[bits]
    refuse(capsys, ConfigError, "loop", "--run", whole, "--quantize", other_bits, "-q", saying=("model.quantize",))
