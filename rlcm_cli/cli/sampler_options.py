"""The options of a command that the settings of the samplers make."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PANEL = "Settings of the sampler"
META = "rlcm.sampler_settings"


class SamplerCommand(TyperCommand):
    """A command with an option for every setting of a sampler.

    They are made when they are needed, so that no other command pays for reading the samplers. The command's function
    finds what was given by `chosen_settings`.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all options, those of the samplers last."""
        return [*super().get_params(ctx), *make_options()]

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with the values of the samplers' options in its context."""
        ctx.meta[META] = {option.name: ctx.params.pop(option.name) for option in make_options()}
        return super().invoke(ctx)


def chosen_settings(context: typer.Context) -> Mapping[str, Any]:
    """Return the settings of the sampler that were given as options, by their names; None means "not given"."""
    from rlcm_cli.samplers import read_setting

    given: dict[str, str | None] = context.meta[META]
    return {name: None if text is None else read_setting(text) for name, text in given.items()}


@functools.cache
def make_options() -> list[Any]:
    """Make an option for every setting of a sampler, its name with hyphens."""
    from rlcm_cli.samplers import SAMPLERS, find_owners

    options: dict[str, Any] = {}
    for sampler in SAMPLERS.values():
        usual = sampler.drawing_settings()
        for name in sampler.setting_names:
            setting = sampler.settings.model_fields[name]
            options.setdefault(
                name,
                typer.Option(
                    f"--{name.replace('_', '-')}",
                    metavar=_metavar(setting.annotation),
                    help=f"Of {' and '.join(find_owners(name))}: {_first_clause(setting)}.",
                    show_default=f"the LoRA's, or {getattr(usual, name)}",
                    rich_help_panel=PANEL,
                ),
            )
    # A function with these parameters, for typer to make options of.
    command = typer.Typer(add_completion=False)
    command.command()(_with_parameters(options))
    return [option for option in typer.main.get_command(command).params if option.name in options]


def _with_parameters(options: Mapping[str, Any]) -> Callable[..., None]:
    def function(**_: str | None) -> None:
        """Take what is given."""

    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])
        for name, option in options.items()
    ]
    function.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {}
    return function


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    return {int: "N", float: "X"}.get(annotation, "VALUE")


def _first_clause(setting: FieldInfo) -> str:
    text = " ".join((setting.description or "").split()).partition(";")[0].partition(". ")[0].rstrip(".")
    return text[:1].lower() + text[1:]
