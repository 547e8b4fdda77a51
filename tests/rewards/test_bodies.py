"""The JSON form of requests."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from rlcm_cli.rewards.remote.bodies import TooLargeError, decode_json
from rlcm_cli.rewards.remote.protocol import ProtocolError


def png(size=(3, 2), mode="RGB", colour=0):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode(*images, most_bytes=1000, **fields):
    body = {"images": list(images), "prompts": ["x"] * len(images), **fields}
    return decode_json(json.dumps(body).encode(), most_bytes)


def test_pixels_prompts_and_metadata():
    batch = decode(png(colour=(1, 2, 3)), png(), metadata=[{"group": 1}, {}])
    assert batch.images.shape == (2, 3, 2, 3)
    assert batch.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert batch.images.dtype == np.uint8
    assert (batch.prompts, batch.metadata) == (["x", "x"], [{"group": 1}, {}])
    assert decode(png()).metadata == [{}]


@pytest.mark.parametrize(
    ("images", "fields", "words"),
    [
        ([], {}, "images: List should have at least 1 item"),
        ([png()], {"prompts": []}, "1 images came with 0 prompts and 1 metadata"),
        ([png()], {"more": 1}, "more: Extra inputs are not permitted"),
        ([png(mode="L")], {}, "image 0 is L, not RGB"),
        ([png(), png((2, 2))], {}, "image 1 has another size than image 0"),
        (["é"], {}, "image 0 is"),
        ([base64.b64encode(b"x").decode()], {}, "image 0 is not a PNG file"),
        ([png()[:40] + "AAAA"], {}, "image 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(images, fields, words):
    with pytest.raises(ProtocolError, match=words) as caught:
        decode(*images, **fields)
    assert "\n" not in str(caught.value)


def test_images_that_are_too_large_are_not_decoded():
    with pytest.raises(TooLargeError, match="1 images of 3×2 are more than the 17 bytes"):
        decode(png(), most_bytes=17)
