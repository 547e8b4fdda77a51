"""Options that are derived from the settings of the configuration: type, values and help text are the field's.

They are made when a command needs them, so that `rlcm --help` does not pay for reading the configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from rlcm_cli.cli import completion
from rlcm_cli.cli.completion import words_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PANEL = "Configuration"
META = "rlcm.settings"
METAVARS = {int: "N", float: "X", str: "TEXT"}


@dataclass(frozen=True)
class Flag:
    """How a setting is written on the command line; what is empty is taken from the field."""

    name: str
    metavar: str = ""
    help: str = ""
    default: str | bool = False
    """What the help shows as the default."""
    complete: Callable[[str], list[str]] | None = None
    """Returns the values that begin with what is typed; None: the field's words, if it has any."""


FLAGS = {
    "prompts.source": Flag(
        "--prompts",
        "SOURCE",
        "A text file with one prompt per line, a table as FILE.csv:COLUMN, or a built-in set.",
        "the preset's",
    ),
    "model.name": Flag("--model", "NAME", complete=completion.complete_model),
    "model.revision": Flag("--revision", "COMMIT"),
    "model.dtype": Flag("--dtype", "TYPE", "float32, float16 or bfloat16."),
    "model.quantize": Flag(
        "--quantize", "4bit|8bit", "Store the frozen denoiser's weights in 4 or 8 bits: less memory.", "no"
    ),
    "model.tiled_decoding": Flag("--tiled-decoding", default="no"),
    "model.image_size": Flag(
        "--size", "WIDTHxHEIGHT", "Pixels of an image, such as 768x1024, or 512 for a square.", "the model's"
    ),
    "sampler.kind": Flag("--sampler", "KIND", "How images are sampled: {words}.", "the preset's, or the model's"),
    "objective.kind": Flag("--objective", "KIND", "Training objective: {words}."),
    "train.parameters": Flag("--train", "WHAT"),
    "last_step.mode": Flag(
        "--last-step",
        "MODE",
        "The last call: deterministic, noise (one more action) or backprop (through the reward).",
    ),
    "sample.samples": Flag("--samples"),
    "sample.steps": Flag("--steps", "H", "Model calls per image, 2 or more."),
    "runtime.iterations": Flag("--iterations"),
    "runtime.stop_when_flat": Flag("--stop-when-flat", default="no"),
    "seed": Flag("--seed"),
    "train.kl_weight": Flag("--kl", help="Weight of the KL divergence from the base model."),
    "monitor.rewards": Flag(
        "--monitor",
        "NAME",
        "Reward to score without training on it; warns if it drops; repeatable.",
        complete=completion.complete_reward,
    ),
    "monitor.on_hacking": Flag("--on-hacking", default="warn"),
    "runtime.device": Flag("--device", "NAME", "auto, cpu, cuda, cuda:1 or mps.", complete=completion.complete_device),
    "runtime.micro_batch_size": Flag("--micro-batch"),
    "runtime.offload": Flag("--offload", default="no"),
    "runtime.memory_budget": Flag("--memory-budget", "SIZE"),
    "runtime.shard_weights": Flag(
        "--shard-weights", help="With several processes: keep a part of the denoiser's frozen weights in each (FSDP2)."
    ),
    "runtime.keep_rollouts": Flag("--keep-rollouts", default="all"),
    "runtime.keep_checkpoints": Flag("--keep-checkpoints", default="all"),
    "runtime.log_with": Flag(
        "--log-with", "TRACKER", "Copy metrics and images to a tracker, in RUN/logs: {words}; repeatable."
    ),
    "ray.address": Flag("--ray-address", "ADDRESS", default="a cluster on this machine only"),
}
"""Dotted key → the option that sets it."""


class SettingCommand(TyperCommand):
    """A command with an option for each setting in `keys`; its function finds what was given by `chosen_settings`."""

    keys: tuple[str, ...] = ()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all options, those of the settings last."""
        return [*super().get_params(ctx), *self.make_options()]

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with the values of the derived options in its context."""
        ctx.meta[META] = {option.name: ctx.params.pop(option.name) for option in self.make_options()}
        return super().invoke(ctx)

    @classmethod
    def make_options(cls) -> Sequence[Any]:
        """Make the options."""
        return make_setting_options(cls.keys)


def command_with(*keys: str, base: type[SettingCommand] = SettingCommand) -> type[SettingCommand]:
    """Make the class of a command that has an option for each of these settings, and those of its base."""
    return type(base.__name__, (base,), {"keys": keys})


def chosen_settings(context: typer.Context) -> dict[str, Any]:
    """Return the settings that were given as options, by their dotted keys; None means "not given"."""
    given: Mapping[str, Any] = context.meta[META]
    found = {key: given[_variable(key)] for key in FLAGS if _variable(key) in given}
    # A repeatable option that is not given is an empty list.
    return {
        key: (list(dict.fromkeys(value)) or None) if isinstance(value, list | tuple) else value
        for key, value in found.items()
    }


def _variable(key: str) -> str:
    return key.replace(".", "__")


@functools.cache
def make_setting_options(keys: tuple[str, ...]) -> Sequence[Any]:
    """Make the options of settings, in the order of `FLAGS`."""
    from rlcm_cli.config import Config
    from rlcm_cli.sections import settings_of

    fields = settings_of(Config)
    options = {}
    for key, flag in FLAGS.items():
        if key in keys:
            field, *_ = fields[key]
            # What is on or off is an option without a value.
            given = [one.annotation for one in fields[key] if one.annotation is not bool]
            words = [word for annotation in given for word in words_of(annotation)]
            options[_variable(key)] = (
                _type_of(field.annotation),
                typer.Option(
                    flag.name,
                    metavar=flag.metavar or (metavar_of(field.annotation) if given else ""),
                    help=(flag.help or "{help}.").format(help=first_clause(field), words=", ".join(words)),
                    show_default=flag.default,
                    rich_help_panel=PANEL,
                    autocompletion=flag.complete or completion.complete_from(words),
                ),
            )
    return build_options(options)


def build_options(options: Mapping[str, tuple[Any, Any]]) -> list[Any]:
    """Have typer make options: name of the value → its type, and what typer says of the option."""

    def function(**_: Any) -> None:
        """Take what is given."""

    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
            for name, (kind, option) in options.items()
        ]
    )
    function.__annotations__ = {}
    command = typer.Typer(add_completion=False)
    command.command()(function)
    return [option for option in typer.main.get_command(command).params if option.name in options]


def metavar_of(annotation: Any) -> str:
    """Return how the help writes a setting's value."""
    if words := words_of(annotation):
        return "|".join(words)
    return METAVARS.get(_plain(annotation), "VALUE")


def first_clause(field: FieldInfo) -> str:
    """Return the first clause of a field's docstring, without a full stop."""
    return " ".join((field.description or "").split()).partition(";")[0].partition(". ")[0].rstrip(".")


def _type_of(annotation: Any) -> Any:
    """Return the type that the command line reads; words are left for the configuration to refuse."""
    if get_origin(annotation) is tuple:
        return list[str]
    plain = _plain(annotation)
    return plain if plain in (int, float, bool) else str


def _plain(annotation: Any) -> Any:
    """Return the type of a setting without None and without its limits."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = {_plain(part) for part in get_args(annotation) if part is not NoneType}
        return kinds.pop() if len(kinds) == 1 else str
    return annotation
