"""Components of a pipeline: whole, or refused with a line."""

import diffusers
import pytest
import torch
import transformers
from model_helpers import edit_json
from safetensors.torch import load_file, save_file

from rlcm_cli.errors import ModelError
from rlcm_cli.models.components import load_module, load_scheduler, load_tokenizer
from rlcm_cli.models.folders import PipelineFolder

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def load_unet(folder, dtype=torch.float32):
    return load_module(PipelineFolder("mine", folder), "unet", diffusers.UNet2DConditionModel, dtype)


def test_a_component_is_loaded_in_a_dtype(tiny_lcm):
    assert {weight.dtype for weight in load_unet(tiny_lcm, torch.bfloat16).parameters()} == {torch.bfloat16}
    folder = PipelineFolder("mine", tiny_lcm)
    assert len(load_tokenizer(folder, "tokenizer", transformers.CLIPTokenizer)) > 100
    assert load_scheduler(folder, diffusers.LCMScheduler).config.beta_end == 0.012


@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_weights_that_do_not_fit_are_refused(tiny_lcm_copy, fault):
    tensors = load_file(tiny_lcm_copy / WEIGHTS)
    if fault == "missing":
        del tensors["conv_in.bias"]
    else:
        tensors["conv_in.bias"] = torch.zeros(3)
    save_file(tensors, tiny_lcm_copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"^mine: the weights of its unet .*conv_in\.bias") as caught:
        load_unet(tiny_lcm_copy)
    assert "\n" not in str(caught.value)


def test_what_is_not_used_is_told(tiny_lcm_copy, caplog):
    edit_json(tiny_lcm_copy / "unet/config.json", surprise=1)
    load_unet(tiny_lcm_copy)
    assert "mine: diffusers ignores surprise in unet/config.json" in caplog.text
