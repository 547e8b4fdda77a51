"""A rich console for text from files, such as prompts and names of runs, which cannot send it commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from rlcm_cli.cli.streams import clean


class CleanConsole(Console):
    """A console that cleans all text, but keeps rich's own colours and cursor movements."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """Render a string as `Console` does; clean it here, because widths are measured before segments exist."""
        return super().render_str(clean(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as `Console` does."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)


def open_console(**settings: Any) -> Console:
    """Open a console; `settings` are those of rich's `Console`."""
    return CleanConsole(**settings)
