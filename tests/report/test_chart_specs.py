"""Charts as plain values, which a browser draws."""

from __future__ import annotations

import json

import pytest

from rlcm_cli.report.html import specs
from rlcm_cli.report.html.specs import (
    encode_iterations,
    encode_rewards,
    frame,
    hover_layer,
    line_spec,
    point_layers,
    round_digits,
)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.0, 0.0), (1 / 3, 0.333333), (-123456.789, -123457.0), (1.5e-9, 1.5e-9), (2.0, 2.0), (1e300, 1e300)],
)
def test_numbers_have_six_significant_digits(value, rounded):
    assert round_digits(value) == rounded


def test_a_frame_has_a_description_its_rows_and_the_width_of_its_place():
    spec = frame("what it shows", ({"i": number} for number in range(2)))
    assert spec["description"] == "what it shows"
    assert spec["data"] == {"values": [{"i": 0}, {"i": 1}]}
    assert (spec["width"], spec["$schema"]) == ("container", specs.SCHEMA)


def test_a_line_has_a_row_an_iteration():
    spec = line_spec("loss", [(1, 1 / 3), (2, 0.5)])
    assert spec["data"]["values"] == [{"i": 1, "v": 0.333333, "h": 1}, {"i": 2, "v": 0.5, "h": 1}]
    assert spec["description"] == "loss over the iterations"
    line, hover = spec["layer"]
    assert line["encoding"] == {"x": encode_iterations(), "y": encode_rewards()}
    assert [field["field"] for field in hover["encoding"]["tooltip"]] == ["i", "v"]


def test_of_many_points_some_tell_their_numbers(monkeypatch):
    monkeypatch.setattr(specs, "HOVER_POINTS", 3)
    rows = line_spec("loss", [(number, 0.0) for number in range(10)])["data"]["values"]
    assert [row["i"] for row in rows if "h" in row] == [0, 3, 6, 9]
    assert len(rows) == 10


def test_a_pointer_meets_whole_iterations_and_numbers_of_five_digits():
    layer = hover_layer([("i", "iteration"), ("v", "value")])
    assert layer["transform"] == [{"filter": "datum.h"}]
    iteration, value = layer["encoding"]["tooltip"]
    assert "format" not in iteration
    assert (value["title"], value["format"]) == ("value", ".5~g")


def test_points_have_a_rule_of_their_error():
    x = encode_iterations()
    rule, point = point_layers([{"i": 0, "v": 1.0, "low": 0.5, "high": 1.5}], "var(--line)", x)
    assert rule["data"] == point["data"] == {"values": [{"i": 0, "v": 1.0, "low": 0.5, "high": 1.5}]}
    assert (rule["encoding"]["y"]["field"], rule["encoding"]["y2"]["field"]) == ("low", "high")
    assert (point["mark"]["fill"], point["encoding"]["x"]) == ("var(--line)", x)
    assert {field["field"] for field in point["encoding"]["tooltip"]} == {"part", "i", "v", "low", "high"}


def test_rewards_need_not_begin_at_0_and_fields_have_names():
    assert encode_rewards("low")["field"] == "low"
    assert encode_iterations("n")["field"] == "n"
    assert encode_rewards()["scale"]["zero"] is encode_iterations()["scale"]["zero"] is False


def test_every_spec_is_plain_json_without_colours_of_its_own():
    text = json.dumps([line_spec("loss", [(1, 1.0)]), point_layers([], "var(--line)", encode_iterations())])
    assert "#" not in text
