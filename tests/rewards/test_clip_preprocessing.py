import json

import pytest
import torch
from PIL import Image

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.networks.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, read_preprocessing


def as_transformers(batch, **settings):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch]
    return CLIPImageProcessorPil(**settings)(pictures, return_tensors="pt")["pixel_values"]


def smooth(height, width):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (255 * fine.clamp(0, 1)).to(torch.uint8)


def noise(height, width):
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def edges(height, width):
    """Black and white: where a bicubic filter overshoots."""
    return ((noise(height, width) > 127) * 255).to(torch.uint8)


@pytest.mark.parametrize("size", [(512, 512), (300, 451), (451, 300), (100, 64), (225, 224)])
@pytest.mark.parametrize("kind", [smooth, noise, edges])
def test_it_is_clip_image_processor_to_two_levels_of_255(kind, size):
    batch = kind(*size)
    difference = Preprocessing((224, 224), 224)(batch) - as_transformers(batch)
    levels = (difference * torch.tensor(CLIP_STD)[:, None, None] * 255).abs()
    assert levels.max() < 2.01
    assert (levels > 0.5).float().mean() < 1 / 40


def test_an_image_of_the_right_size_is_only_normalised():
    batch = noise(224, 224)
    torch.testing.assert_close(Preprocessing((224, 224), 224)(batch), as_transformers(batch), rtol=0, atol=1e-6)


def test_a_bilinear_square_without_a_crop():
    batch = noise(90, 60)
    settings = {"size": {"height": 32, "width": 40}, "do_center_crop": False, "resample": 2}
    pixels = Preprocessing((32, 40), None, mode="bilinear")(batch)
    torch.testing.assert_close(pixels, as_transformers(batch, **settings), rtol=0, atol=2.01 / 255 / min(CLIP_STD))


@pytest.mark.parametrize(
    ("size", "resized", "top", "left"),
    [((512, 768), (149, 224), 37, 0), ((90, 60), (224, 149), 0, 37), ((100, 100), (224, 224), 0, 0)],
)
def test_padded_with_black_as_open_clip_does(size, resized, top, left):
    batch = noise(*size)
    found = Preprocessing((224, 224), 224, fit="pad")(batch)
    black = -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)
    expected = black[:, None, None].expand(2, 3, 224, 224).clone()
    expected[:, :, top : top + resized[0], left : left + resized[1]] = as_transformers(
        batch, size={"height": resized[0], "width": resized[1]}, do_center_crop=False
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=2.01 / 255 / min(CLIP_STD))


class TestReading:
    def read(self, folder, **config):
        known = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), **config}
        (folder / "preprocessor_config.json").write_text(json.dumps(known))
        return read_preprocessing(folder, reward="clip_score")

    def test_bare_numbers_of_the_first_days(self, tmp_path):
        read = self.read(tmp_path, size=224, crop_size=224, resample=3, do_center_crop=True)
        assert read == Preprocessing((224, 224), 224)

    def test_what_transformers_writes_today(self, tmp_path):
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 24}).save_pretrained(
            tmp_path
        )
        assert read_preprocessing(tmp_path, reward="clip_score") == Preprocessing((32, 24), 40)

    def test_a_square_without_a_crop(self, tmp_path):
        read = self.read(tmp_path, size={"height": 32, "width": 40}, do_center_crop=False, resample=2)
        assert read == Preprocessing((32, 40), None, mode="bilinear")

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"size": 224},
            {"size": {"shortest_edge": 224}, "crop_size": 256},
            {"size": {"height": 64, "width": 64}, "crop_size": {"height": 32, "width": 32}},
            {"size": 224, "crop_size": 224, "resample": 5},
            {"size": 224, "crop_size": 224, "image_mean": [0.5]},
            {"size": 224, "crop_size": {"height": 224}},
        ],
    )
    def test_what_it_cannot_do_is_refused(self, tmp_path, config):
        with pytest.raises(
            RewardError, match="does not describe a resize, a centre crop and a normalisation"
        ) as caught:
            self.read(tmp_path, **config)
        assert "\n" not in str(caught.value)

    def test_a_damaged_file(self, tmp_path):
        (tmp_path / "preprocessor_config.json").write_text("{")
        with pytest.raises(RewardError, match="does not describe"):
            read_preprocessing(tmp_path, reward="clip_score")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(RewardError, match=r"preprocessor_config\.json cannot be read"):
            read_preprocessing(tmp_path, reward="clip_score")
