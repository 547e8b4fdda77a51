"""What the card and the message of an export tell users of ComfyUI to set."""

from types import SimpleNamespace

import pytest

from rlcm_cli.config import ModelSettings, SampleSettings
from rlcm_cli.families import FAMILIES
from rlcm_cli.pictures import comfyui
from rlcm_cli.samplers import SAMPLERS


def use(
    monkeypatch,
    sampler,
    *,
    name="SimianLuo/LCM_Dreamshaper_v7",
    embedding=False,
    architecture="Stable Diffusion 1",
    **model,
):
    monkeypatch.setattr(comfyui, "name_architecture", lambda model: architecture)
    stand_in = SimpleNamespace(
        sampler=SAMPLERS[sampler],
        family=FAMILIES["stable-diffusion"],
        pipeline=SimpleNamespace(text_encoder=object()),
        count_predictions=lambda guidance_scale: 1 if embedding else 2,
    )
    sample = SampleSettings(steps=4, guidance_scale=8.0)
    return comfyui.describe_use(stand_in, ModelSettings(name=name, **model), sample)


def test_a_consistency_model_has_its_sampler_and_no_guidance(monkeypatch):
    assert use(monkeypatch, "lcm", embedding=True) == {
        "Load Diffusion Model": (
            "LCM_Dreamshaper_v7_4k.safetensors of SimianLuo/LCM_Dreamshaper_v7 (Stable Diffusion 1)"
        ),
        "CLIP and VAE": "those of the same model, from its folders text_encoder and vae",
        "LoRA strength": "1",
        "ModelSamplingDiscrete": "lcm",
        "sampler_name": "lcm",
        "scheduler": "sgm_uniform",
        "steps": "4",
        "cfg": "1",
    }


def test_a_distilled_lora_is_named_first(monkeypatch, tmp_path):
    (tmp_path / "lcm.safetensors").touch()
    told = use(monkeypatch, "lcm", name="owner/sd", distilled_lora=str(tmp_path / "lcm.safetensors"))
    assert told["Load Diffusion Model"].startswith("unet/diffusion_pytorch_model.safetensors of owner/sd (")
    assert told["LoRA before this one"] == "lcm.safetensors, at strength 1"
    assert told["cfg"] == "8"


def test_a_folder_is_named_without_its_place(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    told = use(monkeypatch, "ddim", name=str(tmp_path / "mine"))
    assert " of mine (" in told["Load Diffusion Model"]
    assert (told["sampler_name"], told["scheduler"]) == ("ddim", "ddim_uniform")


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_an_architecture_that_it_does_not_know_has_no_settings(monkeypatch, sampler):
    assert use(monkeypatch, sampler, architecture=None) == {}
    assert "extension" in use(monkeypatch, "tcd")["sampler_name"]
