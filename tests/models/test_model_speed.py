"""What makes the model fast must hold: the kernels chosen, and no gradient that nobody asks for."""

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from model_helpers import GUIDANCE, attach_tiny, load_tiny, shake_lora
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlcm_cli.models.lora import lora_parameters


def inputs(model, count=3):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, *model.latent_shape, generator=generator).to(model.dtype)
    return latents, torch.full((count,), 500), model.encode_prompts(["a cat"] * count)


def test_attention_is_torchs_own_kernel_with_an_adapter_too(tiny_lcm):
    model = load_tiny(tiny_lcm)
    attach_tiny(model)
    assert {type(processor) for processor in model.denoiser.attn_processors.values()} == {AttnProcessor2_0}


def test_few_tokens_in_16_bits_on_a_cpu_take_plain_products(tiny_lcm):
    for dtype, plain in (("bfloat16", True), ("float32", False)):
        model = load_tiny(tiny_lcm, dtype)
        latents, timesteps, conditioning = inputs(model)
        with torch.no_grad():
            found = model.predict(latents, timesteps, conditioning, GUIDANCE)
            of_kernel = {}
            for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
                embedding = model.pipeline.get_guidance_scale_embedding(torch.full((3,), GUIDANCE - 1), 32)
                with sdpa_kernel(kernel):
                    of_kernel[kernel] = model.denoiser(
                        latents,
                        timesteps,
                        timestep_cond=embedding.to(model.dtype),
                        encoder_hidden_states=conditioning["prompt_embeds"],
                        return_dict=False,
                    )[0]
        assert torch.equal(found, of_kernel[SDPBackend.MATH]) == plain
        assert torch.equal(found, of_kernel[SDPBackend.FLASH_ATTENTION]) != plain


def test_only_the_adapter_gets_gradients_and_nothing_before_it_is_gone_through(tiny_lcm):
    model = load_tiny(tiny_lcm)
    attach_tiny(model)
    shake_lora(model)
    outputs = {}
    for name in ("conv_in", "time_embedding", "down_blocks.0.resnets.0"):
        model.denoiser.get_submodule(name).register_forward_hook(
            lambda module, arguments, output, name=name: outputs.update({name: output})
        )
    latents, timesteps, conditioning = inputs(model)
    model.predict(latents, timesteps, conditioning, GUIDANCE).square().mean().backward()
    assert {name for name, output in outputs.items() if output.requires_grad} == set()
    assert len(outputs) == 3
    with_gradient = {name for name, parameter in model.denoiser.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(lora_parameters(model))


def test_images_are_decoded_in_the_layout_of_convolutions_and_look_the_same(tiny_lcm):
    model = load_tiny(tiny_lcm)
    latents, _, _ = inputs(model)
    convolutions = [module for module in model.pipeline.vae.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    images = model.decode(latents)
    model.pipeline.vae.to(memory_format=torch.contiguous_format)
    assert (images.int() - model.decode(latents).int()).abs().max() <= 1
    assert images.dtype == torch.uint8
    assert images.unique().numel() > 10


def test_the_guidance_of_each_scale_is_its_own(tiny_lcm):
    model = load_tiny(tiny_lcm)
    latents, timesteps, conditioning = inputs(model)
    with torch.no_grad():
        first = model.predict(latents, timesteps, conditioning, 2.0)
        other = model.predict(latents, timesteps, conditioning, 8.0)
        assert torch.equal(model.predict(latents, timesteps, conditioning, 2.0), first)
    assert not torch.equal(first, other)
