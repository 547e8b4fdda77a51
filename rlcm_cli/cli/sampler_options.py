"""The options of a command that the settings of the samplers make."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from rlcm_cli.cli.setting_options import META, SettingCommand, build_options, first_clause, metavar_of
from rlcm_cli.wording import join_words

PANEL = "Settings of the sampler"


class SamplerCommand(SettingCommand):
    """A command with an option for every setting of a sampler.

    The command's function finds what was given by `chosen_sampler_settings`.
    """

    @classmethod
    def make_options(cls) -> Sequence[Any]:
        """Make the options."""
        return [*super().make_options(), *make_sampler_options()]


def chosen_sampler_settings(context: typer.Context) -> Mapping[str, Any]:
    """Return the settings of the sampler that were given as options, by their names; None means "not given"."""
    from rlcm_cli.samplers import read_setting

    given: Mapping[str, str | None] = context.meta[META]
    texts = {option.name: given[option.name] for option in make_sampler_options()}
    return {name: None if text is None else read_setting(text) for name, text in texts.items()}


@functools.cache
def make_sampler_options() -> Sequence[Any]:
    """Make an option for every setting of a sampler, its name with hyphens."""
    from rlcm_cli.samplers import SAMPLERS, find_owners

    options: dict[str, Any] = {}
    for sampler in SAMPLERS.values():
        usual = sampler.drawing_settings()
        for name in sampler.setting_names:
            setting = sampler.settings.model_fields[name]
            clause = first_clause(setting)
            option = typer.Option(
                f"--{name.replace('_', '-')}",
                metavar=metavar_of(setting.annotation),
                help=f"For {join_words(find_owners(name))}: {clause[:1].lower()}{clause[1:]}.",
                show_default=f"the LoRA's, or {getattr(usual, name)}",
                rich_help_panel=PANEL,
            )
            # As text: which sampler draws, and so what fits, is found out later.
            options.setdefault(name, (str, option))
    return build_options(options)
