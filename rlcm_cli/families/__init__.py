"""The model families, one file each: all that is particular to the pipelines of one architecture.

A module of this folder that does not begin with an underscore is a family. Its name is the family's kind, and its
constant `FAMILY` says all that the rest of the program needs to know: nothing outside this folder asks which family a
model is of, nor what its denoiser is called. No module imports torch or diffusers when it is imported.

Latents have four dimensions, [B, C, h, w], outside this folder. A family whose denoiser takes them packed, as a list
or with other axes, packs and unpacks them in its own functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rlcm_cli.discovery import discover
from rlcm_cli.errors import ModelError
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import Noise, Sampler

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DENOISER_TITLES: Mapping[str, str] = {"unet": "U-Net", "transformer": "transformer"}
"""Names that pipelines have for their denoiser → what a text calls it."""
WITHOUT_EFFECT = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
"""Components that change no image of a prompt, or that the sampler stands for."""


class LoadedPipeline(Protocol):
    """What the functions of a family are given of a loaded model."""

    pipeline: Any
    device: torch.device
    dtype: torch.dtype
    image_size: tuple[int, int]
    """(height, width) of an image in pixels."""
    kept: dict[Any, Tensor]
    """Tensors that a family keeps on the device from one call to the next, by keys that it chooses."""

    @property
    def denoiser(self) -> Any:
        """The module that predicts."""


@dataclass(frozen=True)
class Configs:
    """What the configurations of a pipeline say, read before its weights."""

    index: Mapping[str, Any]
    """model_index.json, in which every component is [library, class]."""
    denoiser: Mapping[str, Any]
    """The denoiser's config.json."""
    scheduler: Mapping[str, Any] | None
    """The scheduler's, with its class as `_class_name`; None where the index states none."""


@dataclass(frozen=True)
class Loading:
    """How a family's pipelines are read."""

    components: Mapping[str, str]
    """Component → its library, diffusers or transformers, in the order of loading; the scheduler comes in addition."""
    find_fault: Callable[[Configs], str | None]
    """Return why a recognised pipeline draws no image of a text, as the rest of a sentence; None: it does."""
    assemble: Callable[[Configs], tuple[str, dict[str, Any]]]
    """Return the pipeline's class in diffusers, and what it is made with in addition to its components."""
    check_fit: Callable[[str, Mapping[str, Any]], None]
    """(model's name, component → loaded) → None. Raises `ModelError` where components do not fit each other."""
    settings: tuple[str, ...] = ()
    """Entries of the pipeline's own configuration that change an image."""
    optional: tuple[str, ...] = ()
    """Components that pipelines may be without, by model_index.json, and draw nevertheless."""


@dataclass(frozen=True)
class Scheduling:
    """What a family's pipelines say of the noise that they were trained with."""

    default: tuple[str, Mapping[str, Any]]
    """Scheduler class and settings of folders that state none."""
    check: Callable[[str, Any, Mapping[str, Any] | None], None]
    """(model's name, scheduler, what its file states) → None. Raises `ModelError` where nothing can be drawn so."""
    overrides: Mapping[str, Any]
    """Settings that a sampler's scheduler is made with, whatever the pipeline's own had."""
    read_noise: Callable[[LoadedPipeline], Noise]
    """Model → the noise, as its pipeline's scheduler and its image size have it."""
    choose_sampler: Callable[[str, Configs, Sampler | None, str | None], Sampler]
    """(model's name, configurations, sampler asked for, distilled LoRA) → the sampler that it is drawn with. Raises
    `ModelError` for a sampler or a distilled LoRA that draws no image with it."""
    recommend: Callable[[str, Configs, str | None], Recommendation | None] = lambda name, configs, distilled_lora: None
    """(model's name, configurations, distilled LoRA) → what the makers of a checkpoint recommend; None: nothing is
    known of it, and it is drawn as pipelines of its family are by default."""
    translate: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda scheduler: scheduler
    """Configuration of a pipeline's own scheduler → what the sampler's is made of."""
    stated: tuple[str, ...] = ()
    """Settings of the sampler's scheduler that the pipeline's own has under other names, so that whoever exchanges it
    in diffusers has to state them."""


@dataclass(frozen=True)
class Guidance:
    """How a family's denoisers are guided, by their settings (`Family.merge_settings`)."""

    is_embedded: Callable[[Mapping[str, Any]], bool]
    """Whether guidance was distilled into the denoiser, so that it costs no second prediction."""
    count_predictions: Callable[[Mapping[str, Any], float], int]
    """(settings, guidance scale) → predictions that a guided one is made of."""
    recommend: Callable[[Mapping[str, Any]], float]
    """The scale that diffusers' pipeline has by default."""
    argument: str = "guidance_scale"
    """What the `__call__` of the pipelines calls the scale."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of `__call__` without which the pipelines do not guide by two predictions."""


@dataclass(frozen=True)
class Latents:
    """The sizes of a family's latents and images."""

    own_size: Callable[[Any], tuple[int, int]]
    """Pipeline → (height, width) in pixels of the images that it draws where no size is asked for."""
    set_size: Callable[[Any, int, int], None]
    """(pipeline, height, width) → None: make it draw images of that size, where it keeps one. Raises `ModelError` for
    a size that the model cannot have."""
    shape: Callable[[Any, int, int], tuple[int, int, int]]
    """(pipeline, height, width) → (channels, height, width) of the latents of an image."""
    arguments: Callable[[LoadedPipeline], Mapping[str, Any]] = lambda model: {}
    """Model → arguments of a pipeline's `__call__` without which it draws images of another size."""


@dataclass(frozen=True)
class Autoencoder:
    """Between latents and images."""

    decode: Callable[[LoadedPipeline, Tensor], Tensor]
    """Latents [B, C, h, w] → images [B, 3, H, W] in about −1 … 1, in the autoencoder's dtype, differentiable."""
    encode: Callable[[LoadedPipeline, Tensor], Tensor]
    """Images [B, 3, H, W] in −1 … 1, float32 on the device → latents [B, C, h, w], the mean of the posterior."""
    needs_float32: Callable[[Mapping[str, Any]], bool]
    """The autoencoder's configuration → whether its activations overflow float16."""


@dataclass(frozen=True)
class TextEncoding:
    """From a prompt to what the denoiser is conditioned on."""

    encode: Callable[[LoadedPipeline, str], dict[str, Tensor]]
    """Prompt → tensors without a batch dimension, by name. Their first dimension may be the prompt's number of tokens:
    in a batch zeros follow the shorter ones, also those of a mask, which a family with such texts adds. What stands in
    for `X` where the prompt is left out for classifier-free guidance is named `negative_X`."""
    count_cut: Callable[[Any, list[str]], tuple[int, int]]
    """(pipeline, prompts) → how many are longer than the encoder reads, and how many tokens that is."""
    stand_in: Callable[[LoadedPipeline], dict[str, Tensor]]
    """Model → what `encode` gives of a prompt of usual length, with random numbers: names, shapes, dtypes, as the
    denoiser's configuration has them. Called with torch's seed set by the prompt; the tensors lie on the CPU."""
    overflows_float16: bool = False
    """Whether the encoders' activations overflow float16; they compute in bfloat16 then."""
    arguments: Callable[[LoadedPipeline], Mapping[str, Any]] = lambda model: {}
    """Model → arguments of a pipeline's `__call__` without which it reads prompts in another way."""


@dataclass(frozen=True)
class ForeignNames:
    """What other tools call a family's models and their layers."""

    kohya: str
    """Prefix of the denoiser's modules in kohya's LoRA files, `<prefix>_<module>`."""
    spell: Callable[[str, Mapping[str, Any], Mapping[str, object]], str]
    """(a layer's name, the denoiser's configuration, the names of all layers) → its other name in LoRA files, or the
    same again."""
    describe: Callable[[Any], tuple[str, dict[str, str]] | None]
    """Pipeline → what the architecture is called, and the metadata that LoRA files of it have; None: no tool has a
    name for it."""
    stack: Callable[[Collection[str]], Mapping[str, tuple[str, ...]]] = lambda layers: {
        name: (name,) for name in layers
    }
    """(names of the denoiser's layers) → the layers of kohya's files and ComfyUI, by their names there: of one layer
    each or of several whose outputs are one after the other, such as `qkv` of `to_q`, `to_k` and `to_v`. Layers that
    are missing have no name there that diffusers reads too."""
    prefixes: tuple[str, ...] = ()
    """Other beginnings of the denoiser's keys in LoRA files, which diffusers reads: `diffusion_model.`, or the empty
    one, of keys that begin with a layer's name."""
    kohya_in_diffusers: bool = True
    """Whether the pipelines of diffusers read kohya's keys."""
    comfyui: Callable[[Any, float], Mapping[str, str]] = lambda pipeline, guidance_scale: {}
    """(pipeline, guidance scale) → ComfyUI's nodes or fields that are particular to the family → their values."""
    single_file: tuple[str, ...] = ()
    """Prefixes by which a text encoder shows, in one file with all the weights, that the file is of this family."""


@dataclass(frozen=True)
class Architecture:
    """A pipeline of a family with random weights, of the size of a published one: to be measured, never looked at.

    A family registers one under the name that `rlcm bench --architecture` has for it. Its functions make modules in
    torch's default dtype on torch's default device, which the caller sets: also on the meta device, where a module has
    shapes and takes no memory. So they make every tensor by torch's own factories, and read no value of one.

    Text encoders may be larger than the denoiser, and no measurement runs them. The pipeline is therefore built
    without, `TextEncoding.stand_in` stands in for them, and they are built by themselves where only their size is
    asked for. No tokenizer is needed.
    """

    build: Callable[[], Any]
    """Make the pipeline: its text encoders and tokenizers are None, its scheduler is of the class of the sampler."""
    build_text_encoders: Callable[[], Mapping[str, Any]]
    """Make the text encoders, by the names of their components."""
    recommendation: Recommendation
    """How the published model is drawn: sampler, steps, guidance, and what else its makers say."""


@dataclass(frozen=True)
class Family:
    """Pipelines of one architecture: plain functions, which import torch and diffusers when they are called."""

    kind: str
    """Name of the module, with hyphens."""
    title: str
    """As a text calls the models."""
    pipelines: tuple[str, ...]
    """Classes of diffusers; the first is the plain one."""
    denoiser: str
    """The component that predicts and is trained: one of `DENOISER_TITLES`."""
    recognise: Callable[[Mapping[str, Any]], bool]
    """model_index.json → whether the pipeline is of this family."""
    loading: Loading
    scheduling: Scheduling
    guidance: Guidance
    latents: Latents
    text: TextEncoding
    autoencoder: Autoencoder
    predict: Callable[[LoadedPipeline, Tensor, Tensor, dict[str, Tensor], float], Tensor]
    """(model, latents [B, C, h, w], times [B], conditioning with B rows, guidance scale) → [B, C, h, w], guided."""
    lora_targets: tuple[str, ...]
    """Modules of the denoiser that a LoRA usually adapts, by the ends of their names."""
    names: ForeignNames
    architectures: Mapping[str, Architecture] = field(default_factory=dict)
    """By the names that `bench` has for them."""

    @property
    def denoiser_title(self) -> str:
        """What a text calls the denoiser."""
        return DENOISER_TITLES[self.denoiser]

    def merge_settings(self, denoiser: Mapping[str, Any], pipeline: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that guidance depends on.

        They are the denoiser's configuration, and of the pipeline's own, or model_index.json, what `Loading.settings`
        names.
        """
        return {**denoiser, **{key: pipeline[key] for key in self.loading.settings if key in pipeline}}

    @property
    def modules(self) -> tuple[str, ...]:
        """Components that are modules of torch."""
        return tuple(name for name in self.loading.components if not name.startswith("tokenizer"))


def class_of(index: Mapping[str, Any], part: str) -> str | None:
    """Return the class that model_index.json states of a component."""
    name = (index.get(part) or [None, None])[1]
    return name if isinstance(name, str) else None


FAMILIES: Mapping[str, Family] = discover(__name__, __path__, "FAMILY", Family)
"""Every family, by its kind. The modules import what stands above."""


def find_family(name: str, index: Mapping[str, Any]) -> Family:
    """Return the family of a pipeline, whose model_index.json this is; `name` is the model's.

    Where several recognise it, it is the one that lists the pipeline's class. Raises `ModelError` where none does.
    """
    stated = index.get("_class_name")
    found = [family for family in FAMILIES.values() if family.recognise(index)]
    chosen = next((family for family in found if stated in family.pipelines), found[0] if found else None)
    if chosen is None:
        raise refuse(name, f"is a {stated}, which is of no family that is known here")
    return chosen


def refuse(name: str, fault: str) -> ModelError:
    """Return the error for a pipeline that is not one of the families', or draws no image of a text."""
    titles = ", ".join(family.title for family in FAMILIES.values())
    return ModelError(f"{name}: {fault}; use a text-to-image pipeline of a known family: {titles}")


def list_components() -> dict[str, str]:
    """Return the components that any family has, with their libraries."""
    return {part: library for family in FAMILIES.values() for part, library in family.loading.components.items()}
