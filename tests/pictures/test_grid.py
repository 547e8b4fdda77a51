"""Prompts and seeds drawn in several ways: which drawings there are, their files, and where a sheet shows them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures import grid
from rlcm_cli.pictures.drawing import Adapter, choose_settings, plan_images
from rlcm_cli.pictures.grid import Ways, plan_axes


def lora(name: str) -> Adapter:
    return Adapter(f"owner/{name}", "", 1.0, name, f"owner/{name}")


ONE, TWO = lora("one"), lora("two")


def plan(ways: Ways, prompts=("a cat",), count=1, **sample):
    specs = plan_images(prompts, count=count, seed=7)
    return plan_axes(specs, count, ways, model={}, sample=sample, sampler={})


def ways_of(planned) -> list[tuple[str | None, float | None, int]]:
    return [
        (drawing.adapter and drawing.adapter.name, drawing.adapter and drawing.adapter.scale, drawing.sample.steps)
        for drawing in planned.drawings
    ]


def refusal(ways: Ways) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(ways)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def sheet(monkeypatch):
    """The blocks of a plan's sheet, with (drawing, shot) in the place of each picture."""

    def lay_out(planned):
        blocks = []
        monkeypatch.setattr(grid, "arrange_blocks", lambda given: blocks.extend(given) or Image.new("RGB", (1, 1)))
        images = [
            [torch.tensor([row, column]) for column in range(len(drawing.specs))]
            for row, drawing in enumerate(planned.drawings)
        ]
        planned.arrange(images)
        return [
            (
                block.caption,
                list(block.rows),
                list(block.columns),
                [[tuple(image.tolist()) for image in row] for row in block.images],
            )
            for block in blocks
        ]

    return lay_out


class TestDrawings:
    def test_one_way_is_a_plain_drawing(self):
        planned = plan(Ways(), ("a cat", "a dog"), 2)
        assert ways_of(planned) == [(None, None, 4)]
        assert planned.files == [["00000-a-cat-7.png", "00001-a-cat-8.png", "00002-a-dog-9.png", "00003-a-dog-10.png"]]

    def test_settings_that_were_asked_for_hold_in_every_way(self):
        planned = plan(Ways(steps=(1, 2)), guidance_scale=2.5)
        assert {drawing.sample.guidance_scale for drawing in planned.drawings} == {2.5}
        assert ways_of(planned) == [(None, None, 1), (None, None, 2)]
        assert planned.files == [["00000-a-cat-7-steps1.png"], ["00000-a-cat-7-steps2.png"]]

    def test_a_lora_alone_has_its_scale(self):
        planned = plan(Ways([ONE], scales=(0.5,)))
        assert ways_of(planned) == [("one", 0.5, 4)]
        assert planned.files == [["00000-a-cat-7.png"]]

    def test_the_base_is_one_more_lora(self):
        planned = plan(Ways([ONE, TWO], compare_base=True))
        assert ways_of(planned) == [(None, None, 4), ("one", 1.0, 4), ("two", 1.0, 4)]
        assert [files[0][14:] for files in planned.files] == ["base.png", "one.png", "two.png"]

    def test_the_base_is_one_more_scale_where_there_are_several(self):
        planned = plan(Ways([ONE], scales=(0.5, -1.0), compare_base=True))
        assert ways_of(planned) == [(None, None, 4), ("one", 0.5, 4), ("one", -1.0, 4)]
        assert [files[0][14:] for files in planned.files] == ["base.png", "scale0.5.png", "scale-1.png"]

    def test_what_is_drawn_alike_is_drawn_once(self):
        planned = plan(Ways([ONE, TWO], scales=(0.5, 1.0), compare_base=True))
        assert ways_of(planned) == [
            (None, None, 4),
            ("one", 0.5, 4),
            ("one", 1.0, 4),
            ("two", 0.5, 4),
            ("two", 1.0, 4),
        ]
        assert ways_of(plan(Ways(steps=(2, 2)))) == [(None, None, 2)]

    def test_names_that_are_alike_are_numbered(self):
        other = dataclasses.replace(ONE, place="elsewhere/one")
        similar = dataclasses.replace(ONE, place="third/one", name="One")
        planned = plan(Ways([ONE, other, similar]))
        names = [name for (name,) in planned.files]
        assert names == ["00000-a-cat-7-one.png", "00000-a-cat-7-one-2.png", "00000-a-cat-7-one-3.png"]

    def test_every_lora_is_drawn_as_its_run_says_and_the_base_as_the_first(self, monkeypatch):
        def choose(adapter, **asked):
            model, sample, sampler = choose_settings(None, **asked)
            return model, sample.model_copy(update={"steps": 3 if adapter == ONE else 5}), sampler

        monkeypatch.setattr(grid, "choose_settings", choose)
        assert ways_of(plan(Ways([ONE, TWO], compare_base=True))) == [
            (None, None, 3),
            ("one", 1.0, 3),
            ("two", 1.0, 5),
        ]


class TestRefusals:
    def test_what_is_about_a_lora_needs_one(self):
        assert refusal(Ways(compare_base=True)) == (
            "--compare-base is about a LoRA, and there is none; name one with --lora"
        )
        assert refusal(Ways(scales=(0.5,))) == "--scale is about a LoRA, and there is none; name one with --lora"

    def test_a_third_axis_is_one_too_many(self):
        message = refusal(Ways([ONE, TWO], scales=(0.5, 1.0), steps=(1, 2)))
        assert message.startswith("--lora (and --compare-base), --scale, --steps each have several values, ")
        assert message.endswith("; give one of them a single value")

    def test_loras_of_different_models_have_no_one_base(self, monkeypatch):
        def choose(adapter, **asked):
            model, *others = choose_settings(None, **asked)
            return model.model_copy(update={"name": adapter.place}), *others

        monkeypatch.setattr(grid, "choose_settings", choose)
        assert refusal(Ways([ONE, TWO], compare_base=True)).endswith("there is no one base; name it with --model")
        assert len(plan(Ways([ONE, TWO])).drawings) == 2

    def test_a_whole_denoiser_has_no_scale(self, tmp_path):
        file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
        whole = Adapter(str(file), "", 1.0, "whole", "whole")
        assert whole.is_whole_denoiser
        assert f"--scale 0.5: {file} is a whole denoiser" in refusal(Ways([whole], scales=(0.5, 1.0)))


class TestSheet:
    def test_of_one_seed_prompts_are_rows(self, sheet):
        assert sheet(plan(Ways(steps=(1, 2)), ("a cat", "a dog"))) == [
            ("", ["a cat\nseed 7", "a dog\nseed 8"], ["1 step", "2 steps"], [[(0, 0), (1, 0)], [(0, 1), (1, 1)]])
        ]

    def test_of_several_seeds_each_prompt_has_a_block_with_a_row_a_way(self, sheet):
        assert sheet(plan(Ways([ONE], scales=(0.5, -1.0)), ("a cat", "a dog"), 2)) == [
            ("a cat", ["scale 0.5", "scale −1"], ["seed 7", "seed 8"], [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]),
            ("a dog", ["scale 0.5", "scale −1"], ["seed 9", "seed 10"], [[(0, 2), (0, 3)], [(1, 2), (1, 3)]]),
        ]

    def test_two_axes_have_a_block_an_image(self, sheet):
        first, second = sheet(plan(Ways([ONE, TWO], steps=(1, 4)), ("a cat", "a dog")))
        assert first == ("a cat · seed 7", ["one", "two"], ["1 step", "4 steps"], [[(0, 0), (1, 0)], [(2, 0), (3, 0)]])
        assert (second[0], second[3]) == ("a dog · seed 8", [[(0, 1), (1, 1)], [(2, 1), (3, 1)]])

    def test_a_drawing_that_stands_for_two_ways_is_shown_in_both(self, sheet):
        ((_, rows, columns, images),) = sheet(plan(Ways([ONE, TWO], scales=(0.5, 1.0), compare_base=True)))
        assert (rows, columns) == (["one", "two"], ["base", "scale 0.5", "scale 1"])
        assert images == [[(0, 0), (1, 0), (2, 0)], [(0, 0), (3, 0), (4, 0)]]

    def test_labels_that_are_alike_are_numbered(self, sheet):
        other = dataclasses.replace(ONE, place="elsewhere/one")
        ((_, _, columns, _),) = sheet(plan(Ways([ONE, other])))
        assert columns == ["one", "one (2)"]
