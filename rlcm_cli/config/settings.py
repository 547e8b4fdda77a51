"""The sections of a run's configuration.

Every section but `[runtime]`, `[watch]` and `[ray]` is the identity of a run: a run directory keeps it, and no phase
runs there with another. Those three hold what may change between two calls (how long, where, on how many machines, how
much memory and disk, what to look out for) without changing what an iteration computes, rounding aside.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, model_validator

from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import DEFAULT, OBJECTIVES, Need, find_objective
from rlcm_cli.samplers import DEFAULT as DEFAULT_SAMPLER
from rlcm_cli.samplers import SAMPLERS, AnySamplerSettings, explain_no_actions
from rlcm_cli.sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section

EMBEDDED_MODEL = "emoji-lcm"
EMBEDDED_MODELS = (EMBEDDED_MODEL, "emoji-diffusion")

Combination = Literal["normalised", "sum"]
"""How several rewards become one advantage: each normalised by its prompt's statistics and then weighted, so that
none drowns the others (`normalised`); or weighted and summed as they are, then normalised (`sum`)."""

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow", "all"]

REPLACEABLE = ("runtime", "watch", "ray")
"""The sections that may change when a run is continued."""


def _read_image_size(value: object) -> object:
    """Read a number of pixels, or two; equal ones become one, so that a size is written in one way only."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(value)) if type(value) in (int, str) else None
    if found is None:
        raise ValueError("write one number of pixels, as 512, or WIDTHxHEIGHT, as 768x1024")
    width, height = int(found[1]), int(found[2] or found[1])
    return width if width == height else f"{width}x{height}"


ImageSize = Annotated[int | str, BeforeValidator(_read_image_size)]


class ModelSettings(Section):
    """The pipeline that is fine-tuned."""

    name: str = EMBEDDED_MODEL
    """The embedded `emoji-lcm` or `emoji-diffusion`, a local diffusers pipeline folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    commit: str | None = None
    """Of a hub id: the commit that the revision named when the run was made, which the run keeps to."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the frozen weights and of the latents; LoRA weights and log-probabilities are float32."""
    distilled_lora: str | None = None
    """File, folder or hub id of an LCM-LoRA or TCD-LoRA that is fused into a plain Stable Diffusion pipeline."""
    image_size: ImageSize | None = None
    """Pixels of an image: those along each side, as 512, or "WIDTHxHEIGHT", as "768x1024" for a portrait. None: as the
    pipeline says."""

    @property
    def image_sides(self) -> tuple[int, int] | None:
        """(height, width) in pixels, in the order of a tensor's dimensions."""
        if self.image_size is None:
            return None
        width, height = (int(side) for side in f"{self.image_size}x{self.image_size}".split("x")[:2])
        return height, width

    @property
    def pinned_revision(self) -> str | None:
        """What the hub is asked for: the commit where it is known, else the revision."""
        return self.commit or self.revision


def keep_commit(base: ModelSettings, chosen: ModelSettings) -> ModelSettings:
    """Return the chosen settings, without the commit that the base brings where another model is chosen."""
    same = (chosen.name, chosen.revision) == (base.name, base.revision)
    return chosen if same or chosen.commit != base.commit else chosen.model_copy(update={"commit": None})


class PromptSettings(Section):
    """Where prompts come from."""

    source: str = "simple_animals"
    """A built-in set, a text file, a table as `FILE.csv:COLUMN` (.tsv, .json, .jsonl, .parquet), or a data set as
    `hf:NAME:COLUMN`."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts never trained on, drawn before and after to see what carries over."""


class SampleSettings(Section):
    """How an iteration's images are drawn."""

    steps: PositiveInt = 4
    """Model calls H an image; those that draw noise are actions of the policy, of most samplers H − 1."""
    guidance_scale: NonNegativeFloat = 8.0
    """As in diffusers' pipelines: an LCM's denoiser is given the embedding of w = guidance_scale − 1, any other is
    guided without a classifier above 1, in training too."""
    samples: PositiveInt = 64
    """Images an iteration."""
    group_size: PositiveInt = 1
    """Images of one prompt drawn together; `samples` is a multiple of it."""
    shards: PositiveInt = 1
    """Units of work an iteration, which several processes can take."""
    batch_size: PositiveInt = 32
    """Images a model call; part of the plan, since bytes depend on it."""
    staleness: Literal[0, 1] = 0
    """Checkpoints that the policy which draws is behind the one that is trained. 1 lets an engine draw an iteration
    while the one before it trains; whoever draws, iteration i is then drawn by checkpoint max(0, i − 1).
    Ratios are then off 1 before the first update already: widen objective.clip_range, or much of it is clipped."""

    @model_validator(mode="after")
    def _check_sizes(self) -> SampleSettings:
        if self.samples % self.group_size:
            raise ValueError(
                f"sample.samples is {self.samples}, not a multiple of sample.group_size {self.group_size}"
            )
        if self.shards > self.samples // self.group_size:
            raise ValueError(
                f"sample.shards is {self.shards}, more than the {self.samples // self.group_size} groups of an "
                "iteration; a group never crosses a shard"
            )
        return self

    def drawing_checkpoint(self, iteration: int) -> int:
        """Give the number of the checkpoint that draws an iteration."""
        return max(0, iteration - self.staleness)


class LastStepSettings(Section):
    """What becomes of the last model call, which is deterministic in an LCM and so gets no policy gradient."""

    mode: Literal["deterministic", "noise", "backprop"] = "deterministic"
    """`noise`: a small Gaussian around its latents while training, so that H calls have H actions; `backprop`: the
    gradient of a differentiable reward through the call, beside the policy gradient of the others."""
    noise_std: PositiveFloat = 0.1
    """Of `noise`: its standard deviation, in units of the latents."""
    weight: PositiveFloat = 30.0
    """Of `backprop`: weight of the reward's gradient. At 1 it and the policy's are, for advantages of the batch,
    parts of that of one expected reward; the default leans on it, since the policy's part is by far the noisier."""


class PretrainingSettings(Section):
    """The loss of the model's own training on real images, against forgetting (arXiv 2401.12244); of ddim alone."""

    source: str | None = None
    """Images with captions: a folder with a metadata.csv (file_name, text) or a .txt beside each image, PATH.parquet,
    or a data set of the hub as NAME, OWNER/NAME, OWNER/NAME/SPLIT or OWNER/NAME/CONFIG/SPLIT. None: no such loss."""
    image_column: str = "image"
    caption_column: str = "text"
    weight: PositiveFloat = 1.0
    """Of the mean squared error beside the objective."""
    batch_size: PositiveInt = 16
    """Images an optimizer step."""
    own_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps an iteration on this loss by itself, before those of the objective; 0: its gradient is part of
    each of theirs."""


class LoraSettings(Section):
    """The adapter that is trained."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Modules of the denoiser that are adapted, by the ends of their names. None: those that are usual in the model's
    family; of U-Nets the projections of attention, to_q, to_k, to_v and to_out.0."""
    start: str | None = None
    """LoRA file, checkpoint or run to start from; its rank, alpha and modules must be those above."""


class TrainSettings(Section):
    """What is learned from the stored trajectories, and how."""

    parameters: Literal["lora", "full"] = "lora"
    """What is trained: the adapter of [lora], or all weights of the denoiser, which takes model.dtype float32."""
    # How a reward is compared and cut stands here and not in [objective]: whoever tries another objective keeps it.
    advantages: Literal["per-prompt", "batch", "group", "leave-one-out", "none"] | None = None
    """What a reward is compared with: its prompt's running statistics, the batch, its group, the others of its
    group; `none`: the reward as it is, in its own unit, for regressions. None: what the objective takes by default,
    `group` where it compares within groups, else `per-prompt`."""
    learning_rate: PositiveFloat = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    lr_decay_iterations: Annotated[int, Field(ge=0)] = 0
    """Iterations in which the decay reaches 0; 0 keeps the rate constant."""
    lr_decay_every: PositiveInt = 1
    """Iterations between two steps of the decay, the first of which is taken at once."""
    lr_warmup_iterations: Annotated[int, Field(ge=0)] = 0
    minibatch_size: PositiveInt | None = None
    """Samples an optimizer step, of which an iteration has a multiple; None: all samples of the iteration."""
    inner_epochs: PositiveInt = 1
    timestep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each trajectory's actions that is trained on, drawn anew for each sample and epoch."""
    advantage_clip: NonNegativeFloat = 10.0
    """Largest advantage, above and below 0, where the objective takes more than their order; 0: any."""
    max_grad_norm: NonNegativeFloat = 5.0
    """Norm to which a longer gradient is shortened; 0: none is."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the closed-form KL between the policy's and the base model's Gaussians."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay an optimizer step of the exponential moving average of the weights; None: none is kept."""
    buffer_size: PositiveInt = 16
    """Rewards kept a prompt for its running mean and standard deviation."""
    min_count: PositiveInt = 16
    """Rewards of a prompt below which the batch's statistics serve instead."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit`: with moments of 8 bits, from the package bitsandbytes."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled (AdamW); at 0 this is Adam."""

    def trained_actions(self, actions: int) -> int:
        """Return how many of a trajectory's actions an inner epoch trains on."""
        return max(1, round(self.timestep_fraction * actions)) if actions else 0


class EvaluateSettings(Section):
    """The fixed images drawn with the first and the last policy, and between them at will."""

    prompts: PositiveInt = 45
    """Prompts drawn at most; up to a third of them are held-out ones."""
    images_per_prompt: PositiveInt = 4
    every: PositiveInt | None = None
    """Also draw them with each checkpoint whose number is a multiple of this; may change when a run is continued."""


class TaskSettings(Section):
    """One of the tasks that a run trains together, on prompts and for rewards of its own."""

    prompts: PromptSettings = PromptSettings()
    rewards: dict[str, float] = Field(min_length=1)
    combine: Combination = "normalised"
    share: PositiveFloat = 1.0
    """Its part of each iteration's groups, relative to the shares of the other tasks."""


class WatchSettings(Section):
    """Rewards that are scored and plotted but never trained on, and the alarm that rests on them."""

    rewards: tuple[str, ...] = ()
    window: PositiveInt = 10
    """Iterations that are averaged before two of them are compared."""
    fall: PositiveFloat = 0.5
    """Fall of a watched reward's mean, in standard deviations over images, that raises the alarm while the
    trained reward rises."""
    on_hacking: Literal["warn", "stop"] = "warn"


class RuntimeSettings(Section):
    """What may change when a run is continued."""

    iterations: PositiveInt = 100
    device: str = "auto"
    """`auto` (CUDA, then MPS, then CPU) or a torch device."""
    micro_batch_size: PositiveInt = 64
    """Transitions in one forward and backward pass; bounds the memory of training."""
    tf32: bool = False
    """On CUDA, of a float32 model: compute products and convolutions in TF32, faster and with 10 bits of mantissa."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass rather than keep them: less memory, more time."""
    memory_budget: str | None = None
    """Memory for the tensors of a run, such as 8GB or 7.5GiB: measured when training starts, and micro_batch_size,
    checkpointing and decoding in slices picked so that they fit; over the two settings above."""
    keep_rollouts: PositiveInt | None = None
    """Newest rollouts to keep; None: all. Receipts and metrics always stay."""
    keep_checkpoints: PositiveInt | None = None
    """Newest checkpoints to keep beside the first; None: all."""
    log_with: tuple[Tracker, ...] = ()
    """Experiment trackers that get a copy of metrics and fixed images, in RUN/logs; `all`: those installed."""

    @model_validator(mode="after")
    def _check_budget(self) -> RuntimeSettings:
        if self.memory_budget is not None:
            parse_size(self.memory_budget)
        return self


class TaskResources(Section):
    """What Ray reserves on a node for each task of a phase, and the task uses."""

    cpus: PositiveInt | None = None
    """Cores, and threads of the task, on whose number bytes depend. None: 1 beside a GPU, else as many as the machine
    that starts the loop would use, or the largest node has."""
    gpus: NonNegativeFloat | None = None
    """GPUs; tasks that ask for 0.5 share one. None: one for the model, and for rewards that run a network, where
    runtime.device admits it and the cluster has any."""
    memory_gb: PositiveFloat | None = None
    """Memory, in GB (1e9 bytes). None: none is reserved."""


class RaySettings(Section):
    """Of `rlcm loop --executor ray`: the cluster, and what each phase asks of it.

    An iteration has one sampling and one scoring task for each of its sample.shards, and a trainer's.
    """

    address: str | None = None
    """HOST:PORT of a cluster; `auto`: the one that RAY_ADDRESS names, or this machine is of. None: this machine alone,
    for the time of the run."""
    sampler: TaskResources = TaskResources()
    scorer: TaskResources = TaskResources()
    trainer: TaskResources = TaskResources()
    """Of training and of evaluations."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """How often a task is done anew whose node or process was lost."""
    wait_seconds: PositiveFloat = 60.0
    """How long to wait for a node with what a task asks for; a cluster that starts nodes on demand takes minutes."""


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
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = PromptSettings()
    sampler: AnySamplerSettings = SAMPLERS[DEFAULT_SAMPLER].default_settings()
    """How images are sampled: a kind, one of those that `rlcm loop --help` lists for --sampler, and its settings."""
    sample: SampleSettings = SampleSettings()
    rewards: dict[str, float] = Field(default_factory=dict)
    """Name → weight. A name is one of `rlcm rewards`, FILE.py:FUNCTION, or the address of a reward server."""
    combine: Combination = "normalised"
    reward_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Reward name → its settings, where they differ from the defaults."""
    tasks: dict[str, TaskSettings] = Field(default_factory=dict)
    """Tasks that are trained together; they stand in the place of `prompts`, `rewards` and `combine` above."""
    last_step: LastStepSettings = LastStepSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    lora: LoraSettings = LoraSettings()
    objective: ObjectiveSettings = Field(default_factory=_default_objective)
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    watch: WatchSettings = WatchSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        sample, train = self.sample, self.train
        if train.minibatch_size is not None and train.minibatch_size > sample.samples:
            raise ValueError(
                f"train.minibatch_size is {train.minibatch_size}, more than the {sample.samples} samples of an "
                "iteration (sample.samples)"
            )
        if train.minibatch_size is not None and sample.samples % train.minibatch_size:
            near = max(size for size in range(1, train.minibatch_size) if sample.samples % size == 0)
            raise ValueError(
                f"train.minibatch_size is {train.minibatch_size} and sample.samples {sample.samples}, which is not a "
                f"multiple of it: the last optimizer step would have fewer samples and count as much; set the former "
                f"to {near} or {sample.samples}"
            )
        if train.lr_schedule != "constant" and 0 < train.lr_decay_iterations <= train.lr_decay_every:
            raise ValueError(
                f"train.lr_decay_iterations is {train.lr_decay_iterations}, in which train.lr_decay_every "
                f"{train.lr_decay_every} leaves the learning rate no step above 0; set train.lr_decay_every to less, "
                "such as 1"
            )
        if self.advantage_kind == "per-prompt" and train.min_count > train.buffer_size:
            raise ValueError(
                f"train.min_count is {train.min_count}, more than train.buffer_size {train.buffer_size}: "
                "a prompt's own statistics would never serve"
            )
        return self

    @model_validator(mode="after")
    def _check_trained(self) -> Config:
        if self.train.parameters == "full" and self.model.dtype != "float32":
            raise ValueError(
                f"train.parameters full changes the denoiser's weights by less than {self.model.dtype} resolves; set "
                "model.dtype to float32, or train a LoRA"
            )
        if self.train.parameters == "full" and self.lora.start is not None:
            raise ValueError(
                "lora.start is a LoRA to start from, and train.parameters full trains none; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Config:
        objective = find_objective(self)
        objective.check(self)
        kind, admitted = self.advantage_kind, objective.advantages.admitted
        if kind in ("group", "leave-one-out") and self.sample.group_size < 2:
            raise ValueError(
                f"train.advantages {kind} compares the images of a group, and there is one in each; set "
                "sample.group_size to 2 or more"
            )
        if kind not in admitted:
            others = [name for name, one in OBJECTIVES.items() if kind in one.advantages.admitted]
            raise ValueError(
                f"train.advantages is {kind}, and objective.kind {objective.kind} takes {', '.join(admitted)}; leave "
                f"it out, or use objective {' or '.join(others)}"
            )
        return self

    @model_validator(mode="after")
    def _check_rewards(self) -> Config:
        if bool(self.rewards) == bool(self.tasks):
            raise ValueError(
                "rewards and tasks are both set; a run of several tasks has the rewards of each in tasks.NAME.rewards"
                if self.tasks
                else "no reward given; name at least one in [rewards]"
            )
        if self.tasks and (self.prompts, self.combine) != (PromptSettings(), "normalised"):
            raise ValueError("prompts and combine are set beside tasks; set those of each in tasks.NAME")
        for name, weights in ((name, task.rewards) for name, task in self.joint_tasks().items()):
            if not any(weights.values()):
                raise ValueError(f"all rewards of task '{name}' have weight 0, so there is nothing to train for")
        for name in self.reward_settings:
            if name not in self.reward_names():
                raise ValueError(
                    f"reward_settings.{name}: '{name}' is neither trained on nor watched here; the rewards are "
                    f"{', '.join(self.reward_names())}"
                )
        if len(self.joint_tasks()) > self.sample.samples // self.sample.group_size:
            raise ValueError(
                f"{len(self.tasks)} tasks share the {self.sample.samples // self.sample.group_size} groups of an "
                "iteration; raise sample.samples"
            )
        return self

    @model_validator(mode="after")
    def _check_watched(self) -> Config:
        trained = {name for task in self.joint_tasks().values() for name in task.rewards}
        both = [name for name in self.watch.rewards if name in trained]
        if both:
            raise ValueError(
                f"watch.rewards has {', '.join(both)}, which is trained for: it cannot show whether that is hacked; "
                "watch another one, or leave it out"
            )
        if self.watch.on_hacking == "stop" and not self.watch.rewards:
            raise ValueError("watch.on_hacking is stop, and no reward is watched; name one with --watch")
        return self

    def joint_tasks(self) -> dict[str, TaskSettings]:
        """Give the tasks by name: of a usual run the one that it is."""
        return self.tasks or {
            self.task: TaskSettings(prompts=self.prompts, rewards=self.rewards, combine=self.combine)
        }

    def reward_names(self) -> list[str]:
        """Give every reward that is trained on or watched, once."""
        trained = [name for task in self.joint_tasks().values() for name in task.rewards]
        return list(dict.fromkeys([*trained, *self.watch.rewards]))

    @property
    def advantage_kind(self) -> str:
        """The advantages that are used: those that are asked for, or the objective's own."""
        return self.train.advantages or find_objective(self).advantages.admitted[0]

    @property
    def kept_checkpoints(self) -> int | None:
        """Newest checkpoints to keep beside the first: `runtime.keep_checkpoints`, and those that draw; None: all."""
        keep = self.runtime.keep_checkpoints
        return None if keep is None else max(keep, 1 + self.sample.staleness)

    def require_actions(self) -> None:
        """Raise `ConfigError` where a trajectory would hold no action, and the objective learns from nothing else."""
        if Need.ACTIONS not in find_objective(self).needs:
            return
        # Of some samplers only the pipeline tells what the last call is: `runs.schedules` looks there.
        fault = explain_no_actions(self.sampler, self.sample.steps)
        if fault is not None and self.last_step.mode == "deterministic":
            raise ConfigError(fault)

    def to_json(self) -> str:
        """Give the configuration as indented JSON."""
        return self.model_dump_json(indent=2)

    def identity(self) -> dict[str, Any]:
        """Give the settings that a run directory fixes for good.

        Settings of rewards that are only watched may change as what is watched does.
        """
        values = self.model_dump(mode="json", exclude=set(REPLACEABLE))
        trained = {name for task in self.joint_tasks().values() for name in task.rewards}
        values["reward_settings"] = {name: s for name, s in self.reward_settings.items() if name in trained}
        del values["evaluate"]["every"]  # how often is drawn, not what
        return values


def parse_size(text: str) -> int:
    """Read a number of bytes such as 8GB, 7.5GiB or 900MB. Raises `ValueError` for anything else, and for none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(M|G)(i?)B", text.strip(), re.IGNORECASE)
    count = 0.0
    if found:
        base = 1024 if found[3] else 1000
        count = float(found[1]) * base ** {"M": 2, "G": 3}[found[2].upper()]
    if count < 1:
        raise ValueError(f"a memory budget of '{text}' cannot be; write a size such as 8GB, 7.5GiB or 900MB")
    return int(count)
