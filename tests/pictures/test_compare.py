"""The same prompts and seeds with the last policies of several runs."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from conftest import tiny_values
from phase_runs import finish, make_config, prepare
from PIL import Image

from rlcm_cli.config import parse_config
from rlcm_cli.errors import RlcmError
from rlcm_cli.events import FileWritten
from rlcm_cli.pictures.compare import choose_prompts, draw_samples, plan_samples
from rlcm_cli.pictures.drawing import find_lora, load_drawing_model, plan_drawing
from rlcm_cli.pictures.generate import generate
from rlcm_cli.runs.inputs import read_prompts
from rlcm_cli.runs.run import Run, open_run
from rlcm_cli.store.layout import RunLayout


def pixels(folder):
    images = []
    for file in sorted(folder.glob("0*.png")):
        with Image.open(file) as image:
            images.append(np.asarray(image))
    return np.stack(images)


def test_each_run_is_drawn_with_its_sampler_at_several_steps(tiny_lcm, tmp_path):
    few, _ = prepare(tmp_path / "few", make_config(tiny_lcm), upto="sample")
    many, _ = prepare(tmp_path / "many", make_config(tiny_lcm, sample={"steps": 10}), upto="sample")
    rows = plan_samples({"RLCM": few.layout.root, "DDPO": many.layout.root}, tmp_path / "out")
    steps = [
        (method, [row.drawing.sample.steps for row in own]) for method, own in groupby(rows, lambda row: row.method)
    ]
    assert steps == [
        ("base model, drawn as RLCM", [1, 2, 4, 8]),
        ("base model, drawn as DDPO", [10, 20, 50]),
        ("RLCM", [1, 2, 4, 8]),
        ("DDPO", [10, 20, 50]),
    ]
    assert [row.drawing.adapter is None for row in rows] == [True] * 7 + [False] * 7
    assert len({row.folder for row in rows}) == 14
    assert {row.drawing.sample.guidance_scale for row in rows} == {4.0}
    assert len({row.drawing.specs for row in rows}) == 1


def test_the_images_are_those_of_generate(finished_run, tmp_path):
    run = finished_run
    rows = plan_samples({"a": run, "b": run}, tmp_path / "out")
    events = finish(draw_samples(rows, "cpu"))
    assert not any(isinstance(event, FileWritten) for event in events)
    drawing = plan_drawing(
        rows[5].drawing.prompts,
        count=1,
        seed=0,
        adapter=find_lora(str(run), 1.0),
        model={},
        sample={"steps": 2},
        sampler={},
    )
    finish(generate(drawing, load_drawing_model(drawing, "cpu"), tmp_path / "expected"))
    assert [row.method for row in rows] == ["base model"] * 4 + ["a"] * 4 + ["b"] * 4
    assert np.array_equal(pixels(rows[5].folder), pixels(tmp_path / "expected"))
    assert np.array_equal(pixels(rows[5].folder), pixels(rows[9].folder))
    assert not np.array_equal(pixels(rows[5].folder), pixels(rows[6].folder))


def test_the_base_s_images_are_those_of_the_model_without_a_lora_whatever_a_method_is_called(finished_run, tmp_path):
    rows = plan_samples({"base model": finished_run}, tmp_path / "out")
    finish(draw_samples(rows, "cpu"))
    settings = open_run(finished_run).config
    drawing = replace(rows[1].drawing, adapter=None, model=settings.model, sampler=settings.sampler)
    finish(generate(drawing, load_drawing_model(drawing, "cpu"), tmp_path / "expected"))
    assert np.array_equal(pixels(rows[1].folder), pixels(tmp_path / "expected"))
    assert not np.array_equal(pixels(rows[1].folder), pixels(rows[5].folder))


def test_runs_of_different_models_share_no_base(tiny_lcm, tmp_path):
    one, _ = prepare(tmp_path / "one", make_config(tiny_lcm), upto="sample")
    values = tiny_values(tiny_lcm)
    values["model"] = {**values["model"], "tiled_decoding": True}
    other, _ = prepare(tmp_path / "other", parse_config(values), upto="sample")
    rows = plan_samples({"one": one.layout.root, "other": other.layout.root}, tmp_path / "out")
    assert [row.method for row in rows] == ["one"] * 4 + ["other"] * 4


def test_held_out_prompts_come_first_and_each_once(tiny_lcm):
    config = make_config(tiny_lcm)
    layout = RunLayout(tiny_lcm / "not-made")
    (own,) = read_prompts(config).values()
    assert choose_prompts(Run(layout, config)) == [*own.held_out, *own.training][:8]
    values = tiny_values(tiny_lcm)
    del values["rewards"]
    tasks = {name: {"rewards": {"compressibility": 1.0}} for name in ("a", "b")}
    joint = Run(layout, parse_config({**values, "tasks": tasks}))
    assert choose_prompts(joint) == [*own.held_out, *own.training][:8]


def test_a_run_without_checkpoints_cannot_be_drawn(tiny_lcm, tmp_path):
    run, _ = prepare(tmp_path / "run", make_config(tiny_lcm), upto="sample")
    for file in run.layout.checkpoint(0).iterdir():
        file.unlink()
    run.layout.checkpoint(0).rmdir()
    with pytest.raises(RlcmError, match="no run yet"):
        plan_samples({"a": run.layout.root}, tmp_path / "out")
