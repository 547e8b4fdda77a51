import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import ocr

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def picture(text, ink=BLACK, paper=WHITE, size=32, width=224, height=224):
    """Text in Pillow's own font, uint8 [3, H, W]."""
    image = Image.new("RGB", (width, height), paper)
    ImageDraw.Draw(image).text((16, 12), text, fill=ink, font=ImageFont.load_default(size=size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class TestWantedText:
    @pytest.mark.parametrize(
        ("prompt", "wanted"),
        [
            ('a sign that says "Hello World"', "Hello World"),
            ("a sign that says “Hello World”", "Hello World"),
            ("a sign that says ”Hello“ and „Welt“", "Welt"),
            ("a sign that says «Bonjour»", "Bonjour"),
            ("a sign that says 'hello'", "hello"),
            ("a sign that says ‘hello’.", "hello"),
            ("'hello' on a wall", "hello"),
            ("a dog's sign, 'it's late'", "it's late"),
            ("the dogs' sign “it’s late”", "it’s late"),
            ('a sign "OPEN" above a sign "24 h"', "OPEN 24 h"),
            ('a sign "don\'t"', "don't"),
            ('" hello "', "hello"),
        ],
    )
    def test_it_is_what_stands_between_quotes(self, prompt, wanted):
        assert ocr.wanted_text(prompt) == wanted

    @pytest.mark.parametrize(
        "prompt", ["", "a sign", "a dog's bone", "dogs' bones", "the 90's and 80's", 'a 5" nail', '""', '" "']
    )
    def test_a_prompt_that_quotes_nothing_is_refused(self, prompt):
        with pytest.raises(RewardError, match="quotes no text to look for; write it as in") as caught:
            ocr.wanted_text(prompt)
        assert "\n" not in str(caught.value)


class TestSimilarity:
    @pytest.mark.parametrize(
        ("wanted", "read", "expected"),
        [
            ("kitten", "sitting", 1 - 3 / 7),
            ("sitting", "kitten", 1 - 3 / 7),
            ("hello", "hello", 1),
            ("hello", "", 0),
            ("hello", "xyz", 0),
            ("hello", "hello hello", 0.5),
            ("Hello World", "HELLO\nworld ", 1),
            ("straße", "STRASSE", 1),
            ("24h!", "２４ｈ！", 1),
            ("abc", "abd", 2 / 3),
        ],
    )
    def test_it_is_one_minus_the_edit_distance_over_the_longer_length(self, wanted, read, expected):
        assert ocr.text_similarity(wanted, read) == pytest.approx(expected)


@pytest.fixture(scope="module")
def reward():
    return ocr.ocr(text="")


class TestRealRecogniser:
    def test_text_is_read(self, reward):
        images = torch.stack([picture("Hello World"), picture("Hello World"), picture("")])
        prompts = ['a sign "hello world"', 'a sign "hello"', 'a sign "hello"']
        rewards = reward(images, prompts, [{}] * 3)
        assert rewards.dtype == torch.float32
        torch.testing.assert_close(rewards, torch.tensor([1.0, 0.5, 0.0]))

    def test_lines_are_read_from_top_to_bottom(self, reward):
        assert reward(picture("Hello\nWorld")[None], ['"hello world"'], [{}]).item() == 1

    def test_text_upside_down_is_not_the_text(self, reward):
        image = picture("Hello World").flip(1).flip(2)
        assert reward(image[None], ['"Hello World"'], [{}]).item() < 0.8

    def test_small_pictures_are_read(self, reward):
        assert reward(picture("OPEN", size=18, width=64, height=64)[None], ['"open"'], [{}]).item() == 1

    def test_the_text_can_be_set(self):
        images = torch.stack([picture("OPEN"), picture("SHUT")])
        rewards = ocr.ocr(text="open")(images, ["a sign", 'a sign "shut"'], [{}] * 2)
        torch.testing.assert_close(rewards, torch.tensor([1.0, 0.0]))

    def test_every_prompt_is_read_before_any_image(self, reward):
        with pytest.raises(RewardError, match="quotes no text"):
            reward(picture("OPEN").expand(2, -1, -1, -1), ['"open"', "a sign"], [{}] * 2)

    def test_nothing_is_printed(self, capfd):
        ocr.ocr(text="open")(torch.stack([picture("OPEN"), picture("")]), ["", ""], [{}] * 2)
        assert capfd.readouterr() == ("", "")


def test_the_engine_gets_blue_green_red():
    class Engine:
        def __call__(self, pixels, use_cls):
            self.pixels = pixels
            return type("Output", (), {"txts": None})

    engine = Engine()
    image = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4)
    rewards = ocr._Recogniser(engine, ocr.wanted_text)(image[None], ['"a"'], [{}])
    assert rewards.tolist() == [0.0]
    assert np.array_equal(engine.pixels, image.numpy()[::-1].transpose(1, 2, 0))
    assert engine.pixels.flags.c_contiguous


class TestExtra:
    ENTRY = ocr.ENTRIES["ocr"]

    def test_installed_it_is_no_obstacle(self):
        assert self.ENTRY.obstacle(self.ENTRY.defaults) is None
        assert len(self.ENTRY.revise(self.ENTRY.defaults)) == 64

    @pytest.mark.parametrize("module", ["rapidocr", "onnxruntime", "rapidfuzz"])
    def test_without_it_both_say_how_to_install_it(self, monkeypatch, module):
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
        assert self.ENTRY.obstacle(self.ENTRY.defaults) == f"{module} not installed; pip install 'rlcm[ocr]'"
        for act in (lambda: self.ENTRY.factory(**self.ENTRY.defaults), lambda: self.ENTRY.revise(self.ENTRY.defaults)):
            with pytest.raises(RewardError, match=rf"{module} not installed; pip install 'rlcm\[ocr\]'"):
                act()

    def test_an_engine_that_does_not_start_is_one_line(self, monkeypatch):
        def fail(params):
            raise ImportError("libGL.so.1:\ncannot open shared object file")

        monkeypatch.setattr("rapidocr.RapidOCR", fail)
        with pytest.raises(RewardError, match=r"does not start \(libGL.so.1: cannot open") as caught:
            ocr.ocr(text="")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", [None, 3, ["a"]])
    def test_a_text_that_is_none(self, text):
        with pytest.raises(ConfigError, match="must be a text"):
            ocr.ocr(text=text)
