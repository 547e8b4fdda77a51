"""What a user asks to be drawn becomes a plan: new images, a picture again, or a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from recorded_pictures import MODEL_DIGEST, make_drawing, write_picture
from store_samples import write_lora

from rlcm_cli.config import ModelSettings
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.pictures import drawing as drawings
from rlcm_cli.pictures.drawing import ImageSpec, choose_settings, find_lora, follow_model
from rlcm_cli.pictures.generate_request import Request, check_prompts, plan_request
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import find_sampler
from rlcm_cli.samplers.euler import EulerSettings

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the LoRAs `mine` and `other`, in which the user is."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("mine", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        write_lora(tmp_path / name, value)
    return tmp_path


@pytest.fixture
def picture(home):
    """A picture of two, drawn in two steps with the LoRA `mine` at scale 0.7."""
    drawing = make_drawing("a cat", adapter=find_lora(f"mine/{WEIGHTS}", 0.7))
    return write_picture(home / "a.png", drawing, (1, 2))


def test_a_model_is_drawn_as_its_makers_say(monkeypatch):
    found = Recommendation("euler", 4, 1.0, drawing={"eta": 0.0}, image_size=(768, 512), source="example.org/card")
    asked = []
    monkeypatch.setattr(drawings, "recommend", lambda name, **chosen: asked.append((name, chosen)) or found)
    name, lora = "ann/turbo", "ann/few/few_4step_lora.safetensors"
    model, sample, sampler = choose_settings(None, model={"name": name}, sample={}, sampler={})
    assert (model.image_size, sample.steps, sample.guidance_scale) == ("512x768", 4, 1.0)
    assert sampler == EulerSettings(eta=0.0)
    # What is asked for stands.
    model, sample, sampler = choose_settings(
        None, model={"name": name, "image_size": 256}, sample={"steps": 2}, sampler={"eta": 0.5}
    )
    assert (model.image_size, sample.steps, sampler) == (256, 2, EulerSettings(eta=0.5))
    follow_model(ModelSettings(name=name, distilled_lora=lora))
    assert asked[-1] == (name, {"revision": None, "sampler": None, "distilled_lora": lora})


def test_a_lora_is_a_file_of_a_repository(monkeypatch):
    asked = []
    monkeypatch.setattr(drawings, "locate_lora", asked.append)
    place = "ann/few/few_4step_lora.safetensors"
    assert find_lora(place).place == place
    assert asked == [place]


class TestPrompts:
    def test_texts_pass(self):
        check_prompts(["a cat", "ein Bär 🐻"])

    @pytest.mark.parametrize("prompts", [[], [""], ["a cat", "  "]])
    def test_none_or_an_empty_one_is_refused(self, prompts):
        with pytest.raises(ConfigError, match=r"^no prompt given; use --prompt TEXT .* or --prompts FILE$"):
            check_prompts(prompts)

    @pytest.mark.parametrize(("prompt", "fault"), [("a\0b", "a NUL character"), ("\ud83d", "half of a character")])
    def test_what_is_no_text_is_refused_as_escapes(self, prompt, fault):
        with pytest.raises(ConfigError, match=f"holds {fault}.*; write it in UTF-8$") as caught:
            check_prompts(["a cat", prompt])
        assert ascii(prompt) in str(caught.value)


class TestNewImages:
    def test_what_was_asked_for_is_planned(self):
        asked = Request(["a cat"], count=2, seed=3, steps=[2], sample={"guidance_scale": 2.0})
        asked = replace(asked, model={"name": "emoji-diffusion"}, sampler={"kind": "tcd", "gamma": 0.5})
        planned = plan_request(asked)
        (drawing,) = planned.drawings
        assert drawing.specs == (ImageSpec("a cat", 3), ImageSpec("a cat", 4))
        assert (drawing.sample.steps, drawing.sample.guidance_scale) == (2, 2.0)
        assert (drawing.sampler.kind, drawing.sampler.gamma) == ("tcd", 0.5)
        assert (planned.warnings, planned.model_digest, planned.sources) == ((), None, ())

    def test_what_was_not_given_is_as_the_model_says(self):
        (drawing,) = plan_request(Request(["a cat"], model={"name": "emoji-diffusion", "dtype": None})).drawings
        assert (drawing.specs[0].seed, drawing.sample.steps, drawing.sampler.kind) == (0, 20, "ddim")
        assert drawing.adapter is None

    def test_loras_and_scales_are_ways(self, home):
        drawings = plan_request(Request(["a cat"], loras=["mine", "other"], scales=[0.5])).drawings
        assert [(drawing.adapter.name, drawing.adapter.scale) for drawing in drawings] == [
            ("mine", 0.5),
            ("other", 0.5),
        ]

    def test_no_prompt_is_refused_before_a_lora_is_looked_for(self):
        with pytest.raises(ConfigError, match="no prompt given"):
            plan_request(Request(loras=["not/there/at/all"]))


class TestAgain:
    def test_a_picture_is_drawn_as_it_was(self, picture):
        planned = plan_request(Request(from_image=picture))
        (drawing,) = planned.drawings
        assert drawing.specs == (ImageSpec("a cat", 4),)
        assert drawing.place_in_batch == (1, 2)
        assert (drawing.sample.steps, drawing.sample.guidance_scale) == (2, 3.3)
        assert (drawing.adapter.name, drawing.adapter.scale) == ("mine", 0.7)
        assert (planned.model_digest, planned.sources, planned.warnings) == (MODEL_DIGEST, [picture], [])

    def test_options_stand_over_what_it_says(self, picture):
        asked = Request(["a dog"], seed=9, steps=[3], scales=[0.2], sample={"guidance_scale": 1.5}, from_image=picture)
        (drawing,) = plan_request(asked).drawings
        assert drawing.specs == (ImageSpec("a dog", 9),)
        assert (drawing.sample.steps, drawing.sample.guidance_scale, drawing.adapter.scale) == (3, 1.5, 0.2)
        assert drawing.sampler.original_steps == 50
        (drawing,) = plan_request(Request(sampler={"original_steps": 20}, from_image=picture)).drawings
        assert drawing.sampler.original_steps == 20

    def test_a_seed_of_0_is_a_seed(self, picture):
        assert plan_request(Request(seed=0, from_image=picture)).drawings[0].specs[0].seed == 0

    def test_of_several_images_none_has_a_place_in_the_old_batch(self, picture):
        planned = plan_request(Request(count=2, from_image=picture))
        assert [shot.seed for shot in planned.drawings[0].specs] == [4, 5]
        assert planned.drawings[0].place_in_batch is None

    @pytest.mark.parametrize("sampler", [{}, {"kind": "ddim"}])
    def test_another_model_need_not_be_the_one_that_drew_it(self, picture, sampler):
        planned = plan_request(Request(from_image=picture, model={"name": "emoji-diffusion"}, sampler=sampler))
        assert planned.model_digest is None
        assert planned.drawings[0].model.name == "emoji-diffusion"
        assert planned.drawings[0].sampler == find_sampler(sampler.get("kind", "lcm")).drawing_settings()

    def test_another_lora_is_used_with_a_warning(self, picture):
        planned = plan_request(Request(loras=["other"], from_image=picture))
        assert planned.warnings == [f"{picture}: was drawn with another LoRA than other, by their digests"]
        assert planned.drawings[0].adapter.name == "other"
        assert plan_request(Request(loras=["mine"], from_image=picture)).warnings == []

    def test_a_lora_that_is_gone_is_told(self, picture):
        Path("mine", WEIGHTS).unlink()
        with pytest.raises(ModelError, match="which is not here; point to it with --lora"):
            plan_request(Request(from_image=picture))


class TestTable:
    @pytest.fixture
    def table(self, home):
        (home / "t.csv").write_text("prompt,steps\na cat,\na dog,2\n")
        return Request(batch=home / "t.csv")

    def test_one_value_of_each_option_is_for_the_empty_cells(self, table):
        asked = replace(table, seed=5, steps=[3], scales=[0.5], loras=["mine"], sample={"guidance_scale": 2.0})
        first, second = plan_request(asked).drawings
        assert [first.specs, second.specs] == [(ImageSpec("a cat", 5),), (ImageSpec("a dog", 6),)]
        assert (first.sample.steps, second.sample.steps) == (3, 2)
        assert first.adapter.scale == second.adapter.scale == 0.5
        assert first.sample.guidance_scale == 2.0

    @pytest.mark.parametrize(
        ("flag", "asked", "advice"),
        [
            ("--steps", {"steps": [1, 2]}, "give one value, or a column of the table"),
            ("--scale", {"scales": [0.5, 1.0]}, "give one value, or a column of the table"),
            ("--lora", {"loras": ["a", "b"]}, "give one value, or a column of the table"),
            ("--count", {"count": 2}, "leave it out"),
            ("--compare-base", {"compare_base": True}, "leave it out"),
            ("--prompt", {"prompts": ["a cat"]}, "leave it out"),
            ("--from-image", {"from_image": Path("x.png")}, "leave it out"),
        ],
    )
    def test_what_a_table_says_by_itself_is_refused(self, table, flag, asked, advice):
        with pytest.raises(ConfigError) as caught:
            plan_request(replace(table, **asked))
        assert str(caught.value) == f"{flag} with --batch, which draws each row of its table once; {advice}"
