"""What is trained, behind the same functions: an adapter, or the whole denoiser."""

import pytest
import torch
from model_helpers import load_tiny

from rlcm_cli.models.full import WHOLE_DENOISER, attach_full
from rlcm_cli.models.lora import LORA, attach_lora
from rlcm_cli.models.trained import TrainedWeights


@pytest.mark.parametrize("kind", [LORA, WHOLE_DENOISER], ids=["lora", "whole denoiser"])
def test_the_base_model_is_there_within_a_block(tiny_lcm, kind: TrainedWeights):
    model = load_tiny(tiny_lcm)
    inputs = (torch.ones(1, *model.latent_shape), torch.tensor([499]), model.encode_prompts(["cat"]), 1.0)
    with torch.no_grad():
        before = model.predict(*inputs)
    if kind is LORA:
        attach_lora(model, rank=2, alpha=4, target_modules=None, run_seed=0)
    else:
        attach_full(model, keep_base_on=torch.device("cpu"))
    assert model.trained is kind
    with torch.no_grad():
        for parameter in kind.parameters(model).values():
            parameter += 0.05
        moved = model.predict(*inputs)
        with kind.base_model(model):
            base = model.predict(*inputs)
    torch.testing.assert_close(base, before, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(moved, before, atol=1e-3)
