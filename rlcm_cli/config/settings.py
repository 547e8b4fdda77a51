"""The sections of a run's configuration.

All sections except `[runtime]`, `[monitor]` and `[ray]` form the identity of a run: a run directory keeps it, and no
phase runs there with another one. Those three hold what may change between two calls (how long, where, on how many
machines, how much memory and disk, what to monitor) without changing what an iteration computes, apart from rounding.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, model_validator

from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import DEFAULT, OBJECTIVES, Need, find_objective
from rlcm_cli.samplers import DEFAULT as DEFAULT_SAMPLER
from rlcm_cli.samplers import SAMPLERS, AnySamplerSettings, explain_no_actions
from rlcm_cli.sections import NonNegativeFloat, PositiveFloat, PositiveInt, Quantization, Section
from rlcm_cli.wording import shorten

EMBEDDED_MODEL = "emoji-lcm"
EMBEDDED_MODELS = (EMBEDDED_MODEL, "emoji-diffusion", "emoji-sprint", "emoji-sana")

Combination = Literal["normalised", "sum"]
"""How several rewards become one advantage: each is normalised by its prompt's statistics and then weighted, so that
none dominates (`normalised`); or the raw rewards are weighted and summed, then normalised (`sum`)."""

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow", "all"]

CHANGEABLE_SECTIONS = ("runtime", "monitor", "ray")
"""The sections that may change when a run is resumed."""


def _read_image_size(value: object) -> object:
    """Read a number of pixels, or two; equal ones become one, so that a size is written in one way only."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(value)) if type(value) in (int, str) else None
    if found is None:
        raise ValueError(
            f"model.image_size (--size) is {shorten(repr(value))}: write one number of pixels, such as 512, or "
            "WIDTHxHEIGHT, such as 768x1024"
        )
    width, height = int(found[1]), int(found[2] or found[1])
    return write_size(height, width)


def write_size(height: int, width: int) -> int | str:
    """Write a size in pixels as `model.image_size` has it."""
    return width if width == height else f"{width}x{height}"


ImageSize = Annotated[int | str, BeforeValidator(_read_image_size)]


class ModelSettings(Section):
    """The pipeline that is fine-tuned."""

    name: str = EMBEDDED_MODEL
    """An embedded model (`EMBEDDED_MODELS`), a local diffusers pipeline folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    commit: str | None = None
    """For a hub id: the commit that the revision named when the run was created; the run stays with it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Data type of the frozen weights and the latents; LoRA weights and log-probabilities are float32."""
    distilled_lora: str | None = None
    """File, folder or hub id of an LCM-LoRA or TCD-LoRA to fuse into a plain Stable Diffusion pipeline."""
    quantize: Quantization | None = None
    """Bits of the weights of the frozen denoiser's linear layers, in sampling as in training; needs the package
    bitsandbytes. None: those of model.dtype."""
    tiled_decoding: bool = False
    """Decode images larger than 512 pixels in overlapping tiles: less memory, and slightly different images."""
    image_size: ImageSize | None = None
    """Pixels of an image: along each side, such as 512, or "WIDTHxHEIGHT", such as "768x1024" for a portrait. None:
    the pipeline's default."""

    @property
    def image_sides(self) -> tuple[int, int] | None:
        """(height, width) in pixels, in the order of a tensor's dimensions."""
        if self.image_size is None:
            return None
        width, height = (int(side) for side in f"{self.image_size}x{self.image_size}".split("x")[:2])
        return height, width

    @property
    def pinned_revision(self) -> str | None:
        """What to request from the Hub: the commit if it is known, else the revision."""
        return self.commit or self.revision


def keep_commit(base: ModelSettings, chosen: ModelSettings) -> ModelSettings:
    """Return the chosen settings, without the base's commit if another model is chosen."""
    same = (chosen.name, chosen.revision) == (base.name, base.revision)
    return chosen if same or chosen.commit != base.commit else chosen.model_copy(update={"commit": None})


class PromptSettings(Section):
    """Where prompts come from."""

    source: str = "simple_animals"
    """A built-in set, a text file, a table as `FILE.csv:COLUMN` (.tsv, .json, .jsonl, .parquet), or a data set as
    `hf:NAME:COLUMN`."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts that are never trained on; evaluations use them to measure generalisation."""


class SampleSettings(Section):
    """How an iteration's images are sampled."""

    steps: PositiveInt = 4
    """Model calls H per image; those that add noise are the policy's actions, with most samplers H − 1."""
    guidance_scale: NonNegativeFloat = 8.0
    """As in diffusers' pipelines: an LCM's denoiser gets the embedding of w = guidance_scale − 1; other denoisers use
    classifier-free guidance above 1, in training too."""
    samples: PositiveInt = 64
    """Images per iteration."""
    group_size: PositiveInt = 1
    """Images of one prompt that form a group; `samples` must be a multiple of it."""
    shards: PositiveInt = 1
    """Units of work per iteration, which several processes can share."""
    batch_size: PositiveInt = 32
    """Images per model call; part of the plan, because the exact bytes depend on it."""
    staleness: Literal[0, 1] = 0
    """How many checkpoints the sampling policy lags behind the trained one. With 1, sampling of the next iteration can
    overlap with training; iteration i is then always sampled by checkpoint max(0, i − 1). The ratios then differ from
    1 even before the first update: widen objective.clip_range, or most of them are clipped."""

    @model_validator(mode="after")
    def _check_sizes(self) -> SampleSettings:
        if self.samples % self.group_size:
            raise ValueError(
                f"sample.samples is {self.samples}, which is not a multiple of sample.group_size {self.group_size}; "
                "change one of them"
            )
        if self.shards > self.samples // self.group_size:
            raise ValueError(
                f"sample.shards is {self.shards}, but an iteration has only {self.samples // self.group_size} groups, "
                "and a group never crosses a shard; lower sample.shards"
            )
        return self

    def drawing_checkpoint(self, iteration: int) -> int:
        """Return the number of the checkpoint that samples an iteration."""
        return max(0, iteration - self.staleness)


class LastStepSettings(Section):
    """How to train the last model call, which is deterministic in an LCM and so gets no policy gradient."""

    mode: Literal["deterministic", "noise", "backprop"] = "deterministic"
    """`noise`: add a small Gaussian around its latents during training, so that H calls are H actions; `backprop`: use
    the gradient of a differentiable reward through the call, in addition to the policy gradient of the others."""
    noise_std: PositiveFloat = 0.1
    """For `noise`: its standard deviation, in units of the latents."""
    calls: PositiveInt = 1
    """For `backprop`: through how many calls, the last one included, the gradient of the reward goes back (K of
    DRaFT-K, arXiv 2309.17400). The actions among them get that gradient instead of the policy gradient."""
    weight: PositiveFloat = 30.0
    """For `backprop`: weight of the reward's gradient. At 1, with batch advantages, it and the policy gradient are two
    parts of the gradient of one expected reward; the default favours it, because the policy's part is much noisier."""

    @model_validator(mode="after")
    def _check_calls(self) -> LastStepSettings:
        if self.calls > 1 and self.mode != "backprop":
            raise ValueError(f"last_step.calls is {self.calls}, which is for last_step.mode backprop; leave it out")
        return self

    @property
    def own_actions(self) -> int:
        """How many of a trajectory's actions, its last ones, get the gradient of the reward."""
        return self.calls - 1 if self.mode == "backprop" else 0


class TeacherSettings(Section):
    """A loss beside the objective: the image that the policy predicts, towards the one that a teacher predicts."""

    weight: NonNegativeFloat = 0.0
    """Weight of the mean squared difference of the two predicted images x₀ (as latents), at the calls that are
    trained; 0: no such loss."""
    source: str = "base"
    """`base`: the model before any training; or a pipeline of the same latents: an embedded model, a folder or a hub
    id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    guidance_scale: NonNegativeFloat | None = None
    """Of the teacher's predictions; None: sample.guidance_scale."""

    @property
    def is_pipeline(self) -> bool:
        """Whether another pipeline teaches."""
        return self.source != "base"


class MatchingSettings(Section):
    """Distribution matching beside the objective (DMD2, arXiv 2405.14867; DMDR, arXiv 2511.13649)."""

    weight: NonNegativeFloat = 0.0
    """Weight of the gradient that draws the policy's images to where those of `teacher.source` are, as the difference
    of two scores says: the teacher's, and that of the teacher with a LoRA which learns from the policy's images; 0:
    no such term."""
    calls: Literal["last", "any"] = "last"
    """Whose predicted images are matched: the last model call's, or those of a call drawn for each sample and step."""
    times: Literal["uniform", "logit-normal"] = "uniform"
    """How the noise levels are drawn at which both scores are asked."""
    learning_rate: PositiveFloat = 1e-4
    """Of the second score's LoRA."""
    steps: PositiveInt = 1
    """Optimizer steps that it takes for each of the policy's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps that it takes before the policy learns from it."""
    rank: PositiveInt = 16
    alpha: PositiveInt = 32


class PretrainingSettings(Section):
    """The model's own training loss on real images, against forgetting (arXiv 2401.12244); only with ddim."""

    source: str | None = None
    """Images with captions: a folder with a metadata.csv (file_name, text) or a .txt next to each image, PATH.parquet,
    or a dataset on the Hub as NAME, OWNER/NAME, OWNER/NAME/SPLIT or OWNER/NAME/CONFIG/SPLIT. None: no such loss."""
    image_column: str = "image"
    caption_column: str = "text"
    weight: PositiveFloat = 1.0
    """Weight of the mean squared error relative to the objective."""
    batch_size: PositiveInt = 16
    """Images per optimizer step."""
    own_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps per iteration on this loss only, before those of the objective; 0: its gradient is added to
    each step of the objective."""


class LoraSettings(Section):
    """The adapter to train."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Modules of the denoiser that are adapted, by the ends of their names. None: those that are usual in the model's
    family; of U-Nets the projections of attention, to_q, to_k, to_v and to_out.0."""
    start: str | None = None
    """LoRA file, checkpoint or run to start from; its rank, alpha and modules must match those above."""


class TrainSettings(Section):
    """How the policy is trained on the stored trajectories."""

    parameters: Literal["lora", "full"] = "lora"
    """Weights to train: `lora` (an adapter) or `full` (the whole denoiser); `full` needs model.dtype float32."""
    # Not in [objective], so that changing the objective keeps how rewards become advantages.
    advantages: Literal["per-prompt", "batch", "group", "leave-one-out", "none"] | None = None
    """What a reward is compared with: its prompt's running statistics, the batch, its group, or the others of its
    group; `none`: the raw reward, for regressions. None: the objective's default, which is `group` if it compares
    within groups, else `per-prompt`."""
    deviation: Literal["own", "batch"] = "own"
    """What differences of rewards are divided by: the standard deviation of what they are compared with, or that of
    all rewards of the iteration, so that a prompt whose images hardly differ counts less."""
    deviation_divisor: Literal["K", "K-1"] | None = None
    """Whether the deviation of K rewards has K or K − 1 as its divisor. None: K − 1 for `group`, else K."""
    step_weights: Literal["none", "noise", "variance"] = "none"
    """Weight of each action in the objective, 1 in the mean over a trajectory: in proportion to the standard deviation
    of its noise (`noise`, arXiv 2508.04324), or to its square (`variance`)."""
    learning_rate: PositiveFloat = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    lr_decay_iterations: Annotated[int, Field(ge=0)] = 0
    """Iterations until the learning rate reaches 0; 0 keeps it constant."""
    lr_decay_every: PositiveInt = 1
    """Iterations between two steps of the decay; the first step is taken immediately."""
    lr_warmup_iterations: Annotated[int, Field(ge=0)] = 0
    minibatch_size: PositiveInt | None = None
    """Samples per optimizer step; sample.samples must be a multiple of it. None: all samples of the iteration."""
    inner_epochs: PositiveInt = 1
    timestep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each trajectory's actions to train on, chosen again for each sample and epoch."""
    actions: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """The actions of a trajectory that are trained, counted from 0; `timestep_fraction` is a share of these. None: all
    of them. A policy gradient is right for any choice of actions: it teaches those calls only."""
    advantage_clip: NonNegativeFloat = 10.0
    """Advantages are clipped to ± this value if the objective uses more than their order; 0: not clipped."""
    max_grad_norm: NonNegativeFloat = 5.0
    """Largest norm of a gradient; longer ones are scaled down to it. 0: no limit."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the KL divergence between the policy's and the base model's Gaussians, in closed form."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay per optimizer step of the exponential moving average of the weights; None: no average is kept."""
    buffer_size: PositiveInt = 16
    """Rewards kept per prompt for its running mean and standard deviation."""
    min_count: PositiveInt = 16
    """If a prompt has fewer rewards than this, the batch's statistics are used instead."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit`: AdamW with 8-bit moments, from the package bitsandbytes."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""

    def chosen_actions(self, actions: int) -> list[int]:
        """Return which of a trajectory's actions may be trained, ascending."""
        return [action for action in range(actions) if self.actions is None or action in self.actions]

    def trained_actions(self, actions: int) -> int:
        """Return how many of a trajectory's actions an inner epoch trains on."""
        chosen = len(self.chosen_actions(actions))
        return max(1, round(self.timestep_fraction * chosen)) if chosen else 0


class EvaluateSettings(Section):
    """The fixed images generated with the first and the last policy, and optionally in between."""

    prompts: PositiveInt = 45
    """Maximum number of prompts; up to a third of them are held out."""
    images_per_prompt: PositiveInt = 4
    every: PositiveInt | None = None
    """Also generate them with each checkpoint whose number is a multiple of this; may change when resuming."""


class TaskSettings(Section):
    """One of the tasks that a run trains together, with its own prompts and rewards."""

    prompts: PromptSettings = PromptSettings()
    rewards: dict[str, float] = Field(min_length=1)
    combine: Combination = "normalised"
    share: PositiveFloat = 1.0
    """Its share of each iteration's groups, relative to the other tasks."""


class MonitorSettings(Section):
    """Rewards that are scored and plotted but never trained on, and the alarm that is based on them."""

    rewards: tuple[str, ...] = ()
    window: PositiveInt = 10
    """Iterations to average; two such averages are compared."""
    fall: PositiveFloat = 0.5
    """Drop of a monitored reward's mean, in standard deviations over images, that raises the alarm while the trained
    reward rises."""
    on_hacking: Literal["warn", "stop"] = "warn"
    """What to do when a monitored reward drops while the trained one rises."""


class RuntimeSettings(Section):
    """How long, where and with how much memory and disk; may change when a run is resumed."""

    iterations: PositiveInt = 100
    """Sample-score-train cycles in total."""
    stop_when_flat: PositiveInt | None = None
    """Stop when the reward of the held-out images has not risen for this many evaluations in a row; needs
    evaluate.every. None: train until all iterations are done."""
    device: str = "auto"
    """`auto` (CUDA, then MPS, then CPU) or a torch device."""
    micro_batch_size: PositiveInt = 64
    """Transitions per forward and backward pass; limits the memory of training."""
    tf32: bool = False
    """On CUDA, with a float32 model: use TF32 for matrix products and convolutions (faster, 10 bits of mantissa)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    offload: bool = False
    """On a GPU: keep the denoiser there only while it works, and the autoencoder only while that does; less memory,
    more time."""
    memory_budget: str | None = None
    """Memory for the run's tensors, such as 8GB or 7.5GiB; measured when training starts. Micro-batch size, gradient
    checkpointing, sliced decoding and offloading are chosen to fit; overrides the settings above."""
    shard_weights: bool = False
    """Each process holds a part of the denoiser's frozen weights; they are gathered block by block (FSDP2). For
    several processes by `accelerate launch` or torchrun, training a LoRA."""
    keep_rollouts: PositiveInt | None = None
    """Number of newest rollouts to keep; None: all. Receipts and metrics always stay."""
    keep_checkpoints: PositiveInt | None = None
    """Number of newest checkpoints to keep, besides the first; None: all."""
    log_with: tuple[Tracker, ...] = ()
    """Experiment trackers that receive a copy of the metrics and the fixed images, in RUN/logs; `all`: every installed
    one."""

    @model_validator(mode="after")
    def _check_budget(self) -> RuntimeSettings:
        if self.memory_budget is not None:
            parse_size(self.memory_budget)
        return self


class TaskResources(Section):
    """What Ray reserves on a node for each task of a phase; the task uses all of it."""

    cpus: PositiveInt | None = None
    """Cores, and threads of the task; the exact bytes depend on their number. None: 1 with a GPU, else as many as the
    machine that starts the loop would use, at most those of the largest node."""
    gpus: NonNegativeFloat | None = None
    """GPUs; two tasks that ask for 0.5 share one. None: one for the model, and one for rewards that run a network, if
    runtime.device allows it and the cluster has GPUs."""
    memory_gb: PositiveFloat | None = None
    """Memory in GB (1e9 bytes). None: nothing is reserved."""


class RaySettings(Section):
    """For `rlcm loop --executor ray`: the cluster, and what each phase requests from it.

    An iteration has one sampling and one scoring task per shard (sample.shards), and one training task.
    """

    address: str | None = None
    """HOST:PORT of a Ray cluster, or `auto`; `auto` is the one that RAY_ADDRESS names or that this machine belongs to.
    None: a cluster on this machine only, for the duration of the run."""
    sampler: TaskResources = TaskResources()
    scorer: TaskResources = TaskResources()
    trainer: TaskResources = TaskResources()
    """For training and for evaluations."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """How often to retry a task whose node or process was lost."""
    wait_seconds: PositiveFloat = 60.0
    """How long to wait for a node with the requested resources; clusters that start nodes on demand take minutes."""


if TYPE_CHECKING:

    class ObjectiveSettings(Section):
        """The settings of any objective."""

        kind: str

else:
    ObjectiveSettings = Annotated[
        Union[tuple(objective.settings for objective in OBJECTIVES.values())],  # noqa: UP007
        Field(discriminator="kind"),
    ]


def _default_objective() -> Any:
    return OBJECTIVES[DEFAULT].settings()


class Config(Section):
    """A whole, resolved configuration."""

    task: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all randomness."""
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = PromptSettings()
    sampler: AnySamplerSettings = SAMPLERS[DEFAULT_SAMPLER].default_settings()
    """How images are sampled: one of the kinds that `rlcm loop --help` lists for --sampler, and its settings."""
    sample: SampleSettings = SampleSettings()
    rewards: dict[str, float] = Field(default_factory=dict)
    """Name → weight. A name is one listed by `rlcm rewards`, FILE.py:FUNCTION, or the address of a reward server."""
    combine: Combination = "normalised"
    reward_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Reward name → its settings that differ from the defaults."""
    tasks: dict[str, TaskSettings] = Field(default_factory=dict)
    """Tasks to train together; they replace `prompts`, `rewards` and `combine` above."""
    last_step: LastStepSettings = LastStepSettings()
    teacher: TeacherSettings = TeacherSettings()
    matching: MatchingSettings = MatchingSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    lora: LoraSettings = LoraSettings()
    objective: ObjectiveSettings = Field(default_factory=_default_objective)
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    monitor: MonitorSettings = MonitorSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        sample, train = self.sample, self.train
        if train.minibatch_size is not None and train.minibatch_size > sample.samples:
            raise ValueError(
                f"train.minibatch_size is {train.minibatch_size}, more than the {sample.samples} samples of an "
                "iteration (sample.samples); lower it"
            )
        if train.minibatch_size is not None and sample.samples % train.minibatch_size:
            near = max(size for size in range(1, train.minibatch_size) if sample.samples % size == 0)
            raise ValueError(
                f"sample.samples is {sample.samples}, which is not a multiple of train.minibatch_size "
                f"{train.minibatch_size}: the last optimizer step would have fewer samples but the same weight; set "
                f"train.minibatch_size to {near} or {sample.samples}"
            )
        if train.lr_schedule != "constant" and 0 < train.lr_decay_iterations <= train.lr_decay_every:
            raise ValueError(
                f"train.lr_decay_iterations is {train.lr_decay_iterations} and "
                f"train.lr_decay_every is {train.lr_decay_every}, so the learning rate would be 0 from the start; "
                + (
                    "raise the former to 2 or more"
                    if train.lr_decay_every == 1
                    else "lower the latter, for example to 1"
                )
            )
        if self.advantage_kind == "per-prompt" and train.min_count > train.buffer_size:
            raise ValueError(
                f"train.min_count is {train.min_count}, more than train.buffer_size {train.buffer_size}, so a "
                "prompt's own statistics would never be used; lower train.min_count"
            )
        return self

    @model_validator(mode="after")
    def _check_trained(self) -> Config:
        if self.train.parameters == "full" and self.model.dtype != "float32":
            raise ValueError(
                f"train.parameters full changes the denoiser's weights by less than {self.model.dtype} can resolve; "
                "set model.dtype to float32, or train a LoRA"
            )
        if self.train.parameters == "full" and self.model.quantize is not None:
            raise ValueError(
                f"train.parameters full changes the denoiser's weights, which model.quantize {self.model.quantize} "
                "freezes; remove model.quantize, or train a LoRA"
            )
        if self.train.parameters == "full" and self.lora.start is not None:
            raise ValueError(
                "lora.start is a LoRA to start from, but train.parameters full does not train a LoRA; remove one"
            )
        return self

    @model_validator(mode="after")
    def _check_offload(self) -> Config:
        if not self.runtime.offload:
            return self
        hindrances = {
            "model.quantize 8bit, whose weights stay on their device": self.model.quantize == "8bit",
            "train.parameters full, whose weights are exchanged while images are drawn": (
                self.train.parameters == "full"
            ),
            "last_step.mode backprop, which goes back through both parts at once": self.last_step.mode == "backprop",
        }
        for hindrance in [name for name, there in hindrances.items() if there]:
            raise ValueError(f"runtime.offload does not go with {hindrance}; remove one of them")
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> Config:
        teacher, matching = self.teacher, self.matching
        used = teacher.model_copy(update={"weight": 0.0}) != TeacherSettings()
        if used and not teacher.weight and not matching.weight:
            raise ValueError(
                "[teacher] has no effect while teacher.weight and matching.weight are 0; set one, or leave it out"
            )
        if teacher.revision is not None and not teacher.is_pipeline:
            raise ValueError("teacher.revision is of a hub id, and teacher.source is base; leave it out")
        if not matching.weight and matching != MatchingSettings():
            raise ValueError("[matching] has no effect while matching.weight is 0; set a weight, or leave it out")
        if matching.weight and not teacher.is_pipeline:
            raise ValueError(
                "matching.weight needs a teacher of many steps, which the policy's images are matched with; set "
                "teacher.source to the pipeline that the model was distilled from"
            )
        if not teacher.is_pipeline:
            return self
        hindrances = {
            "runtime.offload, which moves one denoiser": self.runtime.offload,
            "runtime.shard_weights, which shares the weights of one denoiser": self.runtime.shard_weights,
            "runtime.memory_budget, which is measured without it": self.runtime.memory_budget is not None,
        }
        for hindrance in [name for name, there in hindrances.items() if there]:
            raise ValueError(
                f"teacher.source {self.teacher.source} is a second pipeline, which does not go with {hindrance}; "
                "remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> Config:
        if not self.runtime.shard_weights:
            return self
        hindrances = {
            "train.parameters full: only frozen weights are shared among processes": self.train.parameters == "full",
            f"model.quantize {self.model.quantize}, whose weights cannot be cut": self.model.quantize is not None,
            "runtime.offload, which moves whole weights": self.runtime.offload,
            "runtime.memory_budget, which is measured with whole weights": self.runtime.memory_budget is not None,
        }
        for hindrance in (what for what, there in hindrances.items() if there):
            raise ValueError(f"runtime.shard_weights does not go with {hindrance}; remove one of them")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Config:
        objective = find_objective(self)
        objective.check(self)
        if self.last_step.own_actions and Need.TRAJECTORY_PAIRS in objective.needs:
            raise ValueError(
                f"objective.kind {objective.kind} compares whole trajectories, and last_step.calls "
                f"{self.last_step.calls} takes the last actions out of them; leave it at 1"
            )
        kind, admitted = self.advantage_kind, objective.advantages.admitted
        if kind in ("group", "leave-one-out") and self.sample.group_size < 2:
            raise ValueError(
                f"train.advantages {kind} compares the images of a group, but each group has only one; set "
                "sample.group_size to 2 or more"
            )
        self._check_weighing(kind)
        if kind not in admitted:
            others = [name for name, one in OBJECTIVES.items() if kind in one.advantages.admitted]
            raise ValueError(
                f"train.advantages is {kind}, but objective.kind {objective.kind} takes {', '.join(admitted)}; "
                f"remove it, or use the objective {' or '.join(others)}"
            )
        return self

    def _check_weighing(self, kind: str) -> None:
        train = self.train
        divided = train.deviation == "batch" or train.deviation_divisor is not None
        if kind in ("leave-one-out", "none") and divided:
            raise ValueError(
                f"train.advantages {kind} divides by no standard deviation; leave train.deviation and "
                "train.deviation_divisor out"
            )
        if Need.ACTIONS in find_objective(self).needs:
            return
        unused = {
            f"train.step_weights {train.step_weights} weighs": train.step_weights != "none",
            f"train.actions {list(train.actions or ())} chooses among": train.actions is not None,
        }
        for what in [what for what, there in unused.items() if there]:
            raise ValueError(
                f"{what} the actions of a trajectory, which objective.kind {self.objective.kind} does not learn from; "
                "leave it out"
            )

    @model_validator(mode="after")
    def _check_rewards(self) -> Config:
        if bool(self.rewards) == bool(self.tasks):
            raise ValueError(
                "rewards and tasks are both set; for several tasks, set the rewards of each in tasks.NAME.rewards"
                if self.tasks
                else "no reward given; name at least one in [rewards]"
            )
        if self.tasks and (self.prompts, self.combine) != (PromptSettings(), "normalised"):
            raise ValueError("prompts or combine is set as well as tasks; set those of each task in tasks.NAME")
        for name, weights in ((name, task.rewards) for name, task in self.joint_tasks().items()):
            if not any(weights.values()):
                raise ValueError(
                    f"all rewards of task '{name}' have weight 0, so there is nothing to train for; give one a weight"
                )
        for name in self.reward_settings:
            if name not in self.reward_names():
                raise ValueError(
                    f"reward_settings.{name}: '{name}' is neither trained on nor monitored here; the rewards are "
                    f"{', '.join(self.reward_names())}"
                )
        if len(self.joint_tasks()) > self.sample.samples // self.sample.group_size:
            raise ValueError(
                f"{len(self.tasks)} tasks share the {self.sample.samples // self.sample.group_size} groups of an "
                "iteration; raise sample.samples"
            )
        return self

    @model_validator(mode="after")
    def _check_monitored(self) -> Config:
        trained = {name for task in self.joint_tasks().values() for name in task.rewards}
        both = [name for name in self.monitor.rewards if name in trained]
        if both:
            raise ValueError(
                f"monitor.rewards has {', '.join(both)}, which is trained on, so it cannot show whether that is being "
                "hacked; monitor another reward, or remove it"
            )
        if self.monitor.on_hacking == "stop" and not self.monitor.rewards:
            raise ValueError("monitor.on_hacking is stop, but no reward is monitored; name one with --monitor")
        if self.runtime.stop_when_flat and not self.evaluate.every:
            raise ValueError(
                "runtime.stop_when_flat counts evaluations, and there are none between the first and the last "
                "iteration; evaluate every 10 iterations with --set evaluate.every=10"
            )
        return self

    def joint_tasks(self) -> dict[str, TaskSettings]:
        """Return the tasks by name; a run of a single task has just that one."""
        return self.tasks or {
            self.task: TaskSettings(prompts=self.prompts, rewards=self.rewards, combine=self.combine)
        }

    def reward_names(self) -> list[str]:
        """Return every reward that is trained on or monitored, once."""
        trained = [name for task in self.joint_tasks().values() for name in task.rewards]
        return list(dict.fromkeys([*trained, *self.monitor.rewards]))

    @property
    def advantage_kind(self) -> str:
        """The advantages to use: `train.advantages`, or the objective's default."""
        return self.train.advantages or find_objective(self).advantages.admitted[0]

    @property
    def kept_checkpoints(self) -> int | None:
        """Newest checkpoints to keep besides the first: `runtime.keep_checkpoints`, and those in use; None: all."""
        keep = self.runtime.keep_checkpoints
        return None if keep is None else max(keep, 1 + self.sample.staleness)

    def require_actions(self) -> None:
        """Raise `ConfigError` if a trajectory would have no action and the objective learns from nothing else."""
        if Need.ACTIONS not in find_objective(self).needs:
            return
        # For some samplers only the pipeline says what the last call is: `runs.schedules` looks there.
        fault = explain_no_actions(self.sampler, self.sample.steps)
        if fault is not None and self.last_step.mode == "deterministic":
            raise ConfigError(fault)

    def to_json(self) -> str:
        """Return the configuration as indented JSON."""
        return self.model_dump_json(indent=2)

    def identity(self) -> dict[str, Any]:
        """Return the settings that a run directory fixes for good.

        Settings of rewards that are only monitored may change, as which rewards are monitored may.
        """
        values = self.model_dump(mode="json", exclude=set(CHANGEABLE_SECTIONS))
        trained = {name for task in self.joint_tasks().values() for name in task.rewards}
        values["reward_settings"] = {name: s for name, s in self.reward_settings.items() if name in trained}
        del values["evaluate"]["every"]  # how often, not what
        return values


def parse_size(text: str) -> int:
    """Read a number of bytes such as 8GB, 7.5GiB or 900MB. Raises `ValueError` for anything else, and for zero."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(M|G)(i?)B", text.strip(), re.IGNORECASE)
    count = 0.0
    if found:
        base = 1024 if found[3] else 1000
        count = float(found[1]) * base ** {"M": 2, "G": 3}[found[2].upper()]
    if count < 1:
        raise ValueError(f"'{text}' is not a valid memory budget; write a size such as 8GB, 7.5GiB or 900MB")
    return int(count)
