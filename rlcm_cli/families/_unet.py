"""What Stable Diffusion and SDXL share: a U-Net with cross-attention, on latents of one scale."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from rlcm_cli.errors import ModelError
from rlcm_cli.families import Architecture, Configs, LoadedPipeline, Scheduling, class_of
from rlcm_cli.families._betas import STABLE_DIFFUSION_SCHEDULE, UNCLIPPED, check_scheduler, read_noise
from rlcm_cli.families._clip import with_negative
from rlcm_cli.families._few_step import CHECKPOINTS, recommend
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import SAMPLERS, Sampler
from rlcm_cli.samplers.ddim import SAMPLER as DDIM
from rlcm_cli.samplers.euler import SAMPLER as EULER
from rlcm_cli.samplers.lcm import SAMPLER as LCM

if TYPE_CHECKING:
    from torch import Tensor

DENOISER = "unet"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of attention."""
KOHYA = "lora_unet"
GUIDANCE_EMBEDDING = 256
"""Width of the guidance embedding of published latent consistency models (arXiv 2310.04378)."""

AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TOKENS = 77


def has_unet(index: Mapping[str, Any]) -> bool:
    """Return whether a pipeline, whose model_index.json this is, has the denoiser of Stable Diffusion."""
    return class_of(index, DENOISER) == "UNet2DConditionModel"


def find_other_inputs(configs: Configs) -> str | None:
    """Return why a U-Net does not generate from text only; None if it does."""
    taken, given = (configs.denoiser.get(key) for key in ("in_channels", "out_channels"))
    if taken == given:
        return None
    return (
        f"does not generate from text only: its U-Net takes {taken} channels and gives {given}, as for inpainting or "
        "depth"
    )


# Guidance and samplers


def is_guided_by_embedding(unet: Mapping[str, Any]) -> bool:
    """Return whether a U-Net of this configuration takes the guidance scale as an embedding, as an LCM's does."""
    return bool(unet.get("time_cond_proj_dim"))


def count_predictions(unet: Mapping[str, Any], guidance_scale: float) -> int:
    """Return how many predictions of a U-Net of this configuration a guided one is made of."""
    return 1 + (guidance_scale > 1 and not is_guided_by_embedding(unet))


def choose_sampler(name: str, configs: Configs, wanted: Sampler | None, distilled_lora: str | None) -> Sampler:
    """Decide how a pipeline is drawn, unless asked for: by its U-Net, then its scheduler, then the LoRA.

    Raises `ModelError` for what draws no image: another sampler or a second distillation on an LCM's own U-Net. A
    plain U-Net takes any sampler that is asked for, since distilled weights merged into it cannot be told from its
    own.
    """
    if is_guided_by_embedding(configs.denoiser):
        if wanted not in (None, LCM):
            raise ModelError(
                f"{name}: is a latent consistency model, its U-Net has a guidance embedding (time_cond_proj_dim), and "
                f"cannot be drawn with the sampler '{wanted.kind}'; use --sampler {LCM.kind}, or a plain Stable "
                "Diffusion pipeline"
            )
        if distilled_lora is not None:
            raise ModelError(
                f"{name}: is a latent consistency model already; leave the distilled LoRA '{distilled_lora}' out, or "
                "fuse it into the plain Stable Diffusion pipeline that it was made for"
            )
        return LCM
    if wanted is not None:
        return wanted
    known = recommend(name, configs, distilled_lora)
    if known is not None:
        return SAMPLERS[known.sampler]
    own = (configs.scheduler or {}).get("_class_name")
    distilled = next((one for one in SAMPLERS.values() if one.distilled and one.scheduler == own), None)
    return distilled or (LCM if distilled_lora is not None else DDIM)


SCHEDULING = Scheduling(
    default=(LCM.scheduler, STABLE_DIFFUSION_SCHEDULE),
    check=check_scheduler,
    overrides=UNCLIPPED,
    read_noise=read_noise,
    choose_sampler=choose_sampler,
    recommend=recommend,
)


# Prediction


def predict(
    name_arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]],
    model: LoadedPipeline,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: dict[str, Tensor],
    guidance_scale: float,
) -> Tensor:
    """Predict with guidance; `name_arguments` names a conditioning as `UNet2DConditionModel.forward` does.

    A U-Net that guidance was distilled into takes it as the embedding of w = guidance_scale − 1 (LCM,
    arXiv 2310.04378). Any other is asked twice above 1, in one batch of 2B, as the pipelines of diffusers do:
    classifier-free guidance, ε(∅) + guidance_scale · (ε(c) − ε(∅)) (arXiv 2207.12598).
    """
    call = partial(_call_unet, model, name_arguments)
    if is_guided_by_embedding(model.denoiser.config):
        embedding = _embed_guidance(model, guidance_scale).expand(len(latents), -1)
        return call(latents, timesteps, conditioning, embedding)
    if guidance_scale <= 1:
        return call(latents, timesteps, conditioning)
    both = call(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), with_negative(conditioning))
    negative, positive = both.chunk(2)
    return negative + guidance_scale * (positive - negative)


def _embed_guidance(model: LoadedPipeline, guidance_scale: float) -> Tensor:
    """Return the embedding [1, width] of a guidance scale, on the device."""
    import torch

    # Kept, since a copy to the device at each call would wait for all that was asked of it before.
    if guidance_scale not in model.kept:
        w = torch.full((1,), guidance_scale - 1)
        embedding = model.pipeline.get_guidance_scale_embedding(w, model.denoiser.config.time_cond_proj_dim)
        model.kept[guidance_scale] = embedding.to(model.device, model.dtype)
    return model.kept[guidance_scale]


def _call_unet(
    model: LoadedPipeline,
    name_arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]],
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Mapping[str, Tensor],
    guidance: Tensor | None = None,
) -> Tensor:
    output = model.denoiser(
        latents, timesteps, timestep_cond=guidance, **name_arguments(conditioning), return_dict=False
    )[0]
    return cast("Tensor", output)


# Sizes


def own_size(pipeline: Any) -> tuple[int, int]:
    """Return (height, width) in pixels of the images that the U-Net was trained with."""
    side = int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor)
    return side, side


def set_size(pipeline: Any, height: int, width: int) -> None:
    """Let the pipeline draw images of a size; one that is not square is asked for at each call.

    Raises `ModelError` for a size that the model cannot have.
    """
    scale = int(pipeline.vae_scale_factor)
    unit = scale * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if any(side < unit or side % unit for side in (height, width)):
        asked = str(height) if height == width else f"{width} x {height}"
        raise ModelError(f"images of {asked} pixels: this model's are multiples of {unit} pixels; choose one")
    if height == width:
        pipeline.unet.register_to_config(sample_size=height // scale)


def latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    """Return (channels, height, width) of the latents of an image."""
    scale = int(pipeline.vae_scale_factor)
    return pipeline.unet.config.in_channels, height // scale, width // scale


# Components


def check_unet(name: str, unet: Any, encoders: Sequence[Any], added: str | None) -> None:
    """Raise `ModelError` unless a U-Net takes latents, times and the vectors of text encoders, by configurations.

    `added`: what its `addition_embed_type` has to be.
    """
    wanted = {"addition_embed_type": added, "class_embed_type": None, "num_class_embeds": None}
    for key, value in wanted.items():
        if unet.get(key) != value:
            raise ModelError(
                f"{name}: {key} of its unet is {unet.get(key)!r}, and {value!r} is what a pipeline with "
                f"{'two text encoders' if len(encoders) == 2 else 'one text encoder'} gives it; use a text-to-image "
                "pipeline"
            )
    if unet.encoder_hid_dim_type not in (None, "text_proj"):
        raise ModelError(
            f"{name}: its unet is conditioned on images ({unet.encoder_hid_dim_type}); use a text-to-image pipeline"
        )
    size = unet.sample_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ModelError(
            f"{name}: sample_size of its unet is {size!r}, not a number of latents above 0; fix its config"
        )


def check_width(name: str, unet: Any, encoders: Sequence[Any]) -> None:
    """Raise `ModelError` unless the vectors of text encoders have the width that a U-Net takes."""
    width = sum(encoder.hidden_size for encoder in encoders)
    taken = unet.encoder_hid_dim or unet.cross_attention_dim
    if width not in (taken if isinstance(taken, Sequence) else [taken]):
        raise ModelError(
            f"{name}: its text encoder gives vectors of {width} numbers, and its unet takes {taken}; use the text "
            "encoder that belongs to it"
        )


# Names of a U-Net's layers in LoRA files

SGM_PATHS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
SGM_LAYERS = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def spell_as_sgm(name: str, unet: Mapping[str, Any], names: Mapping[str, object]) -> str:
    """Return the name of a U-Net's layer in Stability's code, which kohya's tools use for SDXL.

    There the blocks of each side are numbered through: every residual block, with the attention after it, is one;
    going down, so is every downsampler; going up, an upsampler is the last part of its block.
    """
    layers = unet.get("layers_per_block")
    if not isinstance(layers, int):
        return name
    if name in SGM_PATHS:
        return SGM_PATHS[name]
    match = re.fullmatch(
        r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if match is None:
        return name
    side, block, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    rest = SGM_LAYERS.get(rest, rest) if kind == "resnets" else rest
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    first = block * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if kind == "upsamplers":
        attended = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
        return f"output_blocks.{first + layers}.{1 + attended}.conv"
    number = first + index + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}.{rest}"


# Pipelines of published sizes with random weights


def list_architectures(
    builders: Mapping[str, Callable[[Sampler, int | None], Any]],
    build_text_encoders: Callable[[], Mapping[str, Any]],
) -> dict[str, Architecture]:
    """Return architectures by name: one that ends in `lcm` has a guidance embedding.

    `builders`: name → what makes a pipeline of a sampler and the width of the guidance embedding, if any. The others
    are those of `Architecture`.
    """
    found = {}
    for name, build in builders.items():
        sampler, embedding, guidance = (LCM, GUIDANCE_EMBEDDING, 8.5) if name.endswith("lcm") else (DDIM, None, 7.5)
        usual = CHECKPOINTS.get(f"stabilityai/{name}") or Recommendation(sampler.kind, sampler.steps, guidance)
        found[name] = Architecture(
            partial(build, SAMPLERS[usual.sampler], embedding),
            build_text_encoders,
            usual,
        )
    return found


def build_scheduler(sampler: Sampler) -> Any:
    """Make the scheduler of a sampler, with Stable Diffusion's noise; Euler's has the timesteps of few-step models."""
    import diffusers
    import torch

    spacing = {"timestep_spacing": "trailing"} if sampler == EULER else {}
    # Not all of them know all of these settings, and some compute with numpy, wherever the pipeline is made.
    with torch.device("cpu"):
        return getattr(diffusers, sampler.scheduler).from_config({**STABLE_DIFFUSION_SCHEDULE, **UNCLIPPED, **spacing})


def build_text_config(settings: Mapping[str, Any]) -> Any:
    """Make the configuration of a text encoder of CLIP's own vocabulary."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=TOKENS, **settings)


def make_embeddings(model: LoadedPipeline, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return random embeddings of some shapes by name, with those of the empty prompt where guidance needs them."""
    import torch

    guided_twice = not is_guided_by_embedding(model.denoiser.config)
    names = [*shapes, *(f"negative_{name}" for name in shapes if guided_twice)]
    return {name: torch.randn(shapes[name.removeprefix("negative_")]) for name in names}
