"""A console of rich for text that comes from files, such as prompts and names of runs, which cannot command it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from rlcm_cli.cli.streams import clean


class CleanConsole(Console):
    """A console that cleans all text, and keeps the colours and movements that are rich's own."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """Render a string as `Console` does; cleaned already here, since widths are measured before segments are."""
        return super().render_str(clean(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as `Console` does."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)


def open_console(**settings: Any) -> Console:
    """Open a console; `settings` are of rich's `Console`."""
    return CleanConsole(**settings)
