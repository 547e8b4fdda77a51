"""Charts as Vega-Lite specifications: plain values, drawn by the reader's browser.

Vega-Lite, since its library is a fifth of Plotly's in a file (0.9 MB for 4.8), it draws SVG that prints sharp and that
is labelled for screen readers, and needs no `eval`, so that the report can forbid it. Colours are CSS variables, which
the style sheet sets for light, dark and print: nothing is drawn twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
HEIGHT = 170
SHORT_LABELS = "datum.value && abs(datum.value) < 1e-3 ? format(datum.value, '.2~e') : datum.label"
"""A number near 0, such as a KL of rounding, would take a third of the chart written out."""
HOVER_POINTS = 150
"""Points of a chart, evenly spread, that tell their numbers to a pointer; a thousand would be slow."""


def point_layers(points: Sequence[Mapping[str, Any]], fill: str, x: Spec) -> list[Spec]:
    """Draw points `i`, `v` over a chart, each with a rule from `low` to `high`."""
    data = {"values": list(points)}
    return [
        {
            "data": data,
            "mark": {"type": "rule", "color": "var(--text)", "aria": False},
            "encoding": {"x": x, "y": encode_rewards("low"), "y2": {"field": "high"}},
        },
        {
            "data": data,
            "mark": {"type": "point", "filled": True, "fill": fill, "stroke": "var(--text)", "size": 42, "opacity": 1},
            "encoding": {
                "x": x,
                "y": encode_rewards(),
                "tooltip": [
                    {"field": "part", "title": "drawn with"},
                    {"field": "i", "title": "checkpoint"},
                    {"field": "v", "title": "mean", "format": ".4~g"},
                    {"field": "low", "title": "− one standard error", "format": ".4~g"},
                    {"field": "high", "title": "+ one standard error", "format": ".4~g"},
                ],
            },
        },
    ]


def line_spec(title: str, values: Sequence[tuple[int, float]]) -> Spec:
    """Draw one line over the iterations."""
    every = max(1, len(values) // HOVER_POINTS)
    rows = [
        {"i": iteration, "v": round_digits(value)} | ({"h": 1} if number % every == 0 else {})
        for number, (iteration, value) in enumerate(values)
    ]
    line = {
        "mark": {"type": "line", "color": "var(--line)", "strokeWidth": 1.4, "strokeJoin": "round"},
        "encoding": {"x": encode_iterations(), "y": encode_rewards()},
    }
    hover = hover_layer([("i", "iteration"), ("v", "value")])
    return frame(f"{title} over the iterations", rows) | {"layer": [line, hover]}


def hover_layer(fields: Sequence[tuple[str, str]]) -> Spec:
    """Show the numbers of the nearest iteration; not a mark each, for a thousand of them would be slow."""
    return {
        "transform": [{"filter": "datum.h"}],
        "params": [
            {
                "name": "hover",
                "select": {
                    "type": "point", "encodings": ["x"], "nearest": True, "on": "pointerover", "clear": "pointerout"
                },
            }
        ],
        "mark": {"type": "rule", "color": "var(--muted)", "strokeWidth": 1, "aria": False},
        "encoding": {
            "x": {"field": "i", "type": "quantitative"},
            "opacity": {"condition": {"param": "hover", "empty": False, "value": 0.7}, "value": 0},
            "tooltip": [
                {"field": name, "type": "quantitative", "title": title, **({} if name == "i" else {"format": ".5~g"})}
                for name, title in fields
            ],
        },
    }  # fmt: skip


def frame(description: str, values: Sequence[Mapping[str, Any]]) -> Spec:
    """Begin a specification: its description for screen readers, its size and its rows."""
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "height": HEIGHT,
        "data": {"values": list(values)},
    }


def encode_iterations(name: str = "i") -> Spec:
    """Put a field of iterations on an axis."""
    return {
        "field": name,
        "type": "quantitative",
        "title": None,
        "scale": {"nice": False, "zero": False},
        "axis": {"tickMinStep": 1, "format": ",d", "grid": False, "tickCount": 6},
    }


def encode_rewards(name: str = "v") -> Spec:
    """Put a field of rewards, or of any other value, on an axis that need not begin at 0."""
    return {
        "field": name,
        "type": "quantitative",
        "title": None,
        "scale": {"zero": False},
        "axis": {"tickCount": 5, "labelExpr": SHORT_LABELS},
    }


def round_digits(value: float) -> float:
    """Round to six significant digits, which is all that a screen shows and half of the bytes."""
    return float(f"{value:.6g}")
