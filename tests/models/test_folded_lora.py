"""Drawing with the adapter folded into the weights: the same policy but for rounding, and nothing of it stays."""

import pytest
import torch
from model_helpers import GUIDANCE, attach_tiny, load_tiny, shake_lora

from rlcm_cli.models.lora import base_model, folded_lora


@pytest.fixture
def adapted(tiny_lcm):
    model = load_tiny(tiny_lcm)
    attach_tiny(model)
    shake_lora(model)
    return model


def predict(model):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, *model.latent_shape, generator=generator).to(model.dtype)
    with torch.no_grad():
        return model.predict(latents, torch.tensor([999, 500, 20]), model.encode_prompts(["a", "b", "c"]), GUIDANCE)


def copies(model):
    return {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}


def assert_untouched(model, before):
    after = model.denoiser.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_the_folded_model_predicts_the_same_but_for_rounding(adapted):
    own = predict(adapted)
    with base_model(adapted):
        acts = (predict(adapted) - own).abs().max()
    with folded_lora(adapted):
        folded = predict(adapted)
    assert 0 < (folded - own).abs().max() <= 2e-6 < 1e-3 < acts


def test_all_weights_keep_their_bits(adapted):
    before = copies(adapted)
    for _ in range(3):
        with folded_lora(adapted):
            assert not torch.equal(
                adapted.denoiser.state_dict()[
                    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.base_layer.weight"
                ],
                before["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.base_layer.weight"],
            )
    assert_untouched(adapted, before)
    with pytest.raises(KeyError), folded_lora(adapted):
        raise KeyError
    assert_untouched(adapted, before)


def test_the_adapter_trains_on_after_the_block(adapted):
    trained = {name for name, parameter in adapted.denoiser.named_parameters() if parameter.requires_grad}
    own = predict(adapted)
    with folded_lora(adapted):
        predict(adapted)
    assert torch.equal(predict(adapted), own)
    assert {name for name, parameter in adapted.denoiser.named_parameters() if parameter.requires_grad} == trained


def test_an_adapter_that_is_switched_off_stays_off(adapted):
    with base_model(adapted):
        base = predict(adapted)
        with folded_lora(adapted):
            assert torch.equal(predict(adapted), base)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_not_folded(tiny_lcm, dtype):
    model = load_tiny(tiny_lcm, dtype)
    attach_tiny(model)
    shake_lora(model)
    own = predict(model)
    with folded_lora(model):
        assert torch.equal(predict(model), own)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_no_sum_of_weights_is_left_as_it_is(tiny_lcm, settings):
    from peft import LoraConfig

    model = load_tiny(tiny_lcm)
    config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=["to_out.0"], **settings)
    model.denoiser.add_adapter(config, adapter_name="policy")
    own = predict(model)
    with folded_lora(model):
        assert torch.equal(predict(model), own)


def test_a_model_without_an_adapter_is_left_as_it_is(tiny_lcm):
    model = load_tiny(tiny_lcm)
    before = copies(model)
    with folded_lora(model):
        predict(model)
    assert_untouched(model, before)
