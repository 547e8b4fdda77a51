"""What pictures say of themselves: written, read back, and taken for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import tiny_values
from PIL import Image
from recorded_pictures import MODEL_DIGEST, make_drawing, rewrite, texts_of, write_picture
from store_samples import write_lora

from rlcm_cli import __version__
from rlcm_cli.config.validation import parse_config
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.pictures import png_metadata
from rlcm_cli.pictures.contact_sheet import write_png
from rlcm_cli.pictures.drawing import Adapter, ImageSpec, find_lora
from rlcm_cli.pictures.png_metadata import (
    describe_sheet,
    find_recorded_lora,
    read_provenance,
    settle_model,
)
from rlcm_cli.samplers import SAMPLERS
from rlcm_cli.samplers.lcm import LcmSettings

LORA = Adapter("owner/lora", "", 0.7, "owner/lora", "owner/lora")


@pytest.fixture
def picture(tmp_path):
    """A picture that was drawn with a LoRA of the hub, as the second of three."""
    return write_picture(tmp_path / "a.png", make_drawing("a cat", adapter=LORA), (1, 3))


def refusal(work, kind=ConfigError) -> str:
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestWriting:
    def test_a_picture_says_all_that_it_depends_on(self, picture):
        assert texts_of(picture) == {
            "prompt": "a cat",
            "seed": "4",
            "sampler": "lcm",
            "eta": "1.0",
            "spacing": "diffusers",
            "original_steps": "50",
            "steps": "2",
            "guidance_scale": "3.3",
            "model": "emoji-lcm",
            "dtype": "float32",
            "model_digest": MODEL_DIGEST,
            "batch": "2/3",
            "lora": "owner/lora",
            "lora_scale": "0.7",
            "software": f"rlcm {__version__}",
        }

    def test_a_path_is_told_by_its_last_part(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "lcm.safetensors").touch()
        drawing = make_drawing("a cat", name=str(tmp_path / "mine"), distilled_lora=str(tmp_path / "lcm.safetensors"))
        texts = texts_of(write_picture(tmp_path / "a.png", drawing))
        assert (texts["model"], texts["distilled_lora"]) == ("mine", "lcm.safetensors")
        assert not any(str(tmp_path) in text for text in texts.values())

    def test_of_a_hub_id_the_commit_is_told(self, tmp_path):
        drawing = make_drawing("a cat", name="owner/model", revision="v2")
        assert texts_of(write_picture(tmp_path / "a.png", drawing))["revision"] == "v2"
        assert texts_of(write_picture(tmp_path / "b.png", drawing, commit="0" * 40))["revision"] == "0" * 40

    def test_a_sheet_says_what_it_shows(self, tmp_path):
        write_png(tmp_path / "s.png", Image.new("RGB", (2, 2)), describe_sheet(["a.png", "b.png"]))
        assert texts_of(tmp_path / "s.png") == {"sheet_of": "a.png\nb.png", "software": f"rlcm {__version__}"}


class TestReading:
    def test_what_was_written_is_read_back(self, picture):
        recorded = read_provenance(picture)
        assert (recorded.file, recorded.spec, recorded.place_in_batch) == (picture, ImageSpec("a cat", 4), (1, 3))
        assert recorded.model == {"name": "emoji-lcm", "dtype": "float32"}
        assert (recorded.model_digest, recorded.steps, recorded.sample) == (MODEL_DIGEST, 2, {"guidance_scale": 3.3})
        assert recorded.sampler == LcmSettings().model_dump()
        assert (recorded.lora, recorded.lora_digest, recorded.scale) == ("owner/lora", "", 0.7)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_every_sampler_and_what_a_model_may_have(self, tmp_path, sampler):
        model = {"name": "owner/m", "revision": "v2", "dtype": "float16", "distilled_lora": "a/b"}
        drawing = make_drawing("ein Bär", sampler=sampler, **model, image_size="64x96")
        recorded = read_provenance(write_picture(tmp_path / "a.png", drawing))
        assert recorded.sampler == drawing.sampler.model_dump()
        assert recorded.model == {**model, "image_size": "64x96"}
        assert (recorded.lora, recorded.scale, recorded.spec.prompt) == ("", 1.0, "ein Bär")

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"batch": None}, "does not say its batch; another version of rlcm has drawn it, so give the settings"),
            ({"steps": None}, "does not say its steps"),
            ({"model": None}, "does not say its model"),
            ({"sampler": None}, "does not say its sampler"),
            ({"original_steps": None}, "does not say its original_steps"),
            ({"batch": "3/2"}, "batch, seed or prompt out of range"),
            ({"batch": "0/2"}, "out of range"),
            ({"batch": "1/1000000"}, "out of range"),
            ({"batch": "1"}, "what it says of itself cannot be"),
            ({"seed": "-1"}, "out of range"),
            ({"seed": str(2**63 - 1)}, "out of range"),
            ({"seed": "one"}, "'one'"),
            ({"prompt": "  "}, "out of range"),
            ({"steps": "1e9"}, "'1e9'"),
            ({"guidance_scale": "nan"}, "(guidance_scale nan); give the settings as options"),
            ({"lora_scale": "inf"}, "(lora_scale inf)"),
            ({"sampler": "heun"}, "no sampler 'heun'"),
            ({"original_steps": "-3"}, "'original_steps' is -3"),
            ({"model": "/etc"}, "(model '/etc' is neither a name nor a hub id)"),
            ({"model": "../home"}, "'../home'"),
            ({"model": "s3://bucket/model"}, "s3://bucket/model"),
            ({"lora": "/etc/passwd"}, "(LoRA '/etc/passwd' is neither a file's name nor a hub id)"),
            ({"lora": "../runs/mine"}, "'../runs/mine'"),
            ({"lora": "s3://bucket/run"}, "s3://bucket/run"),
            ({"lora": "a\\b"}, "LoRA"),
            ({"software": "other 1.0"}, "has no generation metadata; name a PNG that `rlcm generate` has drawn"),
            ({"prompt": None}, "has no generation metadata"),
        ],
    )
    def test_what_a_picture_cannot_say_is_refused(self, picture, tmp_path, changed, words):
        file = rewrite(picture, tmp_path / "changed.png", **changed)
        message = refusal(lambda: read_provenance(file))
        assert message.startswith(f"--from-image {file}: ")
        assert words in message


class TestLora:
    @pytest.fixture
    def recorded(self, tmp_path, monkeypatch):
        """What a picture says that was drawn with `mine/pytorch_lora_weights.safetensors` at scale 0.5."""
        monkeypatch.chdir(tmp_path)
        Path("mine").mkdir()
        write_lora(Path("mine"))
        adapter = find_lora("mine/pytorch_lora_weights.safetensors", 0.5)
        return read_provenance(write_picture(tmp_path / "a.png", make_drawing("a cat", adapter=adapter)))

    def test_a_picture_without_one_has_none(self, tmp_path):
        assert find_recorded_lora(read_provenance(write_picture(tmp_path / "a.png", make_drawing("a cat")))) is None

    def test_one_of_the_hub_is_named_by_its_id(self, picture, monkeypatch):
        monkeypatch.setattr("rlcm_cli.pictures.drawing.locate_lora", lambda place: None)
        assert find_recorded_lora(read_provenance(picture)) == LORA

    def test_it_is_found_here_and_among_the_runs(self, recorded):
        assert recorded.lora == "mine/pytorch_lora_weights.safetensors"
        found = find_recorded_lora(recorded)
        assert (found.digest, found.scale) == (recorded.lora_digest, 0.5)
        Path("runs").mkdir()
        Path("mine").rename("runs/mine")
        assert find_recorded_lora(recorded).place == f"runs/{recorded.lora}"

    def test_one_that_is_gone_or_another_by_now_is_told(self, recorded):
        write_lora(Path("mine"), 2.0)
        message = refusal(lambda: find_recorded_lora(recorded), ModelError)
        assert f"(digest {recorded.lora_digest[:12]}…), and {recorded.lora} is another by now (digest " in message
        assert message.endswith("; point to it with --lora")
        Path(recorded.lora).unlink()
        assert "which is not here; point to it with --lora" in refusal(
            lambda: find_recorded_lora(recorded), ModelError
        )


class TestModel:
    def test_a_name_and_a_hub_id_are_as_they_are_told(self, tmp_path):
        named = read_provenance(write_picture(tmp_path / "a.png", make_drawing("a cat", name="owner/model")))
        assert settle_model(named, None, None) == {"name": "owner/model", "dtype": "float32"}
        other = read_provenance(write_picture(tmp_path / "b.png", make_drawing("a cat", name="emoji-diffusion")))
        assert settle_model(other, None, None) == {"name": "emoji-diffusion", "dtype": "float32"}

    def test_the_default_s_name_is_left_to_it(self, picture):
        assert settle_model(read_provenance(picture), None, None) == {"dtype": "float32"}

    def test_another_model_that_is_asked_for_keeps_the_type_alone(self, tmp_path):
        drawing = make_drawing("a cat", name="owner/model", revision="v2", dtype="float16")
        recorded = read_provenance(write_picture(tmp_path / "a.png", drawing))
        assert settle_model(recorded, None, "a/b") == {"name": "a/b", "dtype": "float16"}

    def test_a_folder_is_that_of_the_lora_s_run_or_has_to_be_here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("models/mine").mkdir(parents=True)
        drawing = make_drawing("a cat", name=str(tmp_path / "models/mine"))
        recorded = read_provenance(write_picture(tmp_path / "a.png", drawing))
        message = refusal(lambda: settle_model(recorded, None, None), ModelError)
        assert "was drawn with the model folder mine, which is not here; point to it with --model" in message
        run = parse_config(tiny_values(tmp_path / "models/mine"))
        monkeypatch.setattr(png_metadata, "settings_of_lora", lambda adapter: run)
        assert settle_model(recorded, LORA, None) == {"dtype": "float32"}
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path / "models")
        assert settle_model(recorded, None, None) == {"name": "mine", "dtype": "float32"}
