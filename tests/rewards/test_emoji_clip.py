"""The packaged emoji-clip loads with transformers and tells animals, colours and nothing apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from transformers import AutoModel, AutoTokenizer, VisionTextDualEncoderModel

import rlcm_cli

PACKAGE = Path(rlcm_cli.__file__).parent
FOLDER = PACKAGE / "rewards" / "emoji_clip"
GENERATOR = PACKAGE / "models" / "embedded" / "emoji-lcm"
# fmt: off
ANIMALS = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat",
    "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish",
    "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck",
    "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)
# fmt: on
SIDE = 96
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "gray")


def noun(animal: str) -> str:
    return f"{'an' if animal == 'ant' else 'a'} {animal}"


@dataclass(frozen=True)
class Clip:
    """Embeds pictures, float [N, 3, 64, 64] in 0..1, and texts as unit vectors."""

    model: VisionTextDualEncoderModel
    tokenizer: object

    @torch.no_grad()
    def pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        larger = torch.nn.functional.interpolate(2 * pictures - 1, SIDE, mode="bilinear", antialias=True)
        embedded = self.model.get_image_features(pixel_values=larger).pooler_output
        return torch.nn.functional.normalize(embedded, dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt")  # type: ignore[operator]
        return torch.nn.functional.normalize(self.model.get_text_features(**tokens).pooler_output, dim=1)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(AutoModel.from_pretrained(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER))


@pytest.fixture(scope="module")
def draw():
    pipe = LatentConsistencyModelPipeline.from_pretrained(GENERATOR)
    pipe.set_progress_bar_config(disable=True)

    def pictures(prompts: Sequence[str]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(500 + i) for i in range(len(prompts))]
        drawn = pipe(
            prompt=list(prompts), num_inference_steps=4, guidance_scale=4.0, generator=generators, output_type="np"
        )
        return torch.from_numpy(drawn.images).permute(0, 3, 1, 2)

    return pictures


@pytest.fixture(scope="module")
def animals(draw) -> torch.Tensor:
    return draw([noun(a) for a in ANIMALS])


def test_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= set(
        files
    )
    assert sum(files.values()) <= 8_000_000


def test_loads_in_float32(clip: Clip):
    assert clip.model.dtype == torch.float32
    assert clip.model.config.vision_config.image_size == SIDE


@pytest.mark.parametrize("form", ["{noun}", "{noun} on white", "{noun} on a white background"])
def test_drawn_animals_are_most_similar_to_their_own_captions(clip: Clip, animals: torch.Tensor, form: str):
    captions = clip.texts([form.format(noun=noun(a)) for a in ANIMALS])
    guessed = (clip.pictures(animals) @ captions.T).argmax(1)
    assert (guessed == torch.arange(len(ANIMALS))).float().mean() >= 0.9


def test_drawn_backgrounds_are_most_similar_to_their_own_colours(clip: Clip, draw):
    wanted = [(a, c) for i, a in enumerate(ANIMALS[:24]) for c in (COLOURS[i % 8],)]
    embedded = clip.pictures(draw([f"{noun(a)} on {c}" for a, c in wanted]))
    hits = 0
    for (animal, colour), picture in zip(wanted, embedded, strict=True):
        similarity = clip.texts([f"{noun(animal)} on {c}" for c in COLOURS]) @ picture
        hits += COLOURS[int(similarity.argmax())] == colour
    assert hits >= 0.9 * len(wanted)


def test_nothing_is_less_similar_than_a_drawing(clip: Clip, animals: torch.Tensor):
    captions = clip.texts([noun(a) for a in ANIMALS])
    right = (clip.pictures(animals) * captions).sum(1)
    white, grey = torch.ones(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.5)
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nothing = (clip.pictures(torch.cat([white, grey, noise])) @ captions.T).max()
    assert nothing < right.quantile(0.1)
    assert nothing < right.mean() - 0.2


def test_same_prompt_has_same_vector_however_padded(clip: Clip):
    alone = clip.texts(["a cat"])
    among = clip.texts(["a cat", "a kangaroo on a yellow background"])[:1]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=0)
