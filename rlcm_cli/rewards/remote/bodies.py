"""The JSON form of requests and answers, for clients in any language, and the schemas of the OpenAPI description."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlcm_cli.rewards.remote.protocol import MEDIA_TYPE, Batch, Buffer, ProtocolError


class TooLargeError(ProtocolError):
    """A request whose images are larger, once decoded, than the server takes."""


class ScoreRequest(BaseModel):
    """Images to score."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: Annotated[
        list[Annotated[str, Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})]],
        Field(min_length=1, description="PNG files, RGB, all of one size, in base64."),
    ]
    prompts: Annotated[list[str], Field(description="The prompt of each image.")]
    metadata: Annotated[
        list[dict[str, Any]] | None,
        Field(description="What else is known of each image; a set-level reward reads the number `group`."),
    ] = None


class ScoreAnswer(BaseModel):
    """Rewards of the images of a request, in its order."""

    rewards: Annotated[list[float], Field(description="One per image, float32; higher is better.")]
    count: int
    reward: str
    revision: Annotated[str, Field(description="Scores of two revisions must not be mixed.")]


class Description(BaseModel):
    """What a served reward is."""

    name: str
    description: str
    range: Annotated[str, Field(description="Range and unit of its values, in words.")]
    version: int
    settings: dict[str, Any]
    set_level: Annotated[bool, Field(description="It compares the images of a group: send whole groups.")]
    revision: Annotated[str, Field(description="Scores of two revisions must not be mixed.")]
    max_bytes: Annotated[int, Field(description="The largest request.")]
    protocol: int


class Refusal(BaseModel):
    """Why a request was not answered."""

    detail: Annotated[str, Field(description="One line.")]


class Health(BaseModel):
    """The server is up."""

    status: str
    rewards: list[str]


_TENSORS = {"type": "string", "format": "binary"}

REQUEST_SCHEMA = {
    "required": True,
    "content": {
        "application/json": {"schema": ScoreRequest.model_json_schema()},
        MEDIA_TYPE: {
            "schema": {
                **_TENSORS,
                "description": "A safetensors file: `images` U8 [B, 3, H, W], and in `__metadata__` the key `rlcm` "
                "with JSON that holds `prompts` and `metadata`, one per image.",
            }
        },
    },
}

ANSWER_SCHEMA = {
    "description": "The rewards, in the form of the request.",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                **_TENSORS,
                "description": "A safetensors file: `rewards` F32 [B], and in `__metadata__` the key `rlcm` with JSON "
                "that holds `count`, `reward` and `revision`.",
            }
        }
    },
}


def decode_json(body: Buffer, most_bytes: int) -> Batch:
    """Read a JSON request.

    Raises:
        TooLargeError: If the decoded images have more than `most_bytes`.
        ProtocolError: If it is not such a request.
    """
    try:
        request = ScoreRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ProtocolError(f"{where + ': ' if where else ''}{fault['msg']}") from None
    count = len(request.images)
    metadata = [{} for _ in range(count)] if request.metadata is None else request.metadata
    if not len(request.prompts) == len(metadata) == count:
        raise ProtocolError(f"{count} images came with {len(request.prompts)} prompts and {len(metadata)} metadata")
    pixels = None
    for index, text in enumerate(request.images):
        with _open_png(text, index) as picture:
            if picture.mode != "RGB":
                raise ProtocolError(f"image {index} is {picture.mode}, not RGB; convert it first")
            if pixels is None:
                # Looked at before any pixel is decoded: a small file may hold a huge picture.
                if count * 3 * picture.width * picture.height > most_bytes:
                    raise TooLargeError(
                        f"{count} images of {picture.width}×{picture.height} are more than the {most_bytes} bytes "
                        "that this server takes; send fewer at a time"
                    )
                pixels = np.empty((count, 3, picture.height, picture.width), np.uint8)
            if (picture.height, picture.width) != pixels.shape[2:]:
                raise ProtocolError(f"image {index} has another size than image 0; send each size on its own")
            try:
                pixels[index] = np.asarray(picture).transpose(2, 0, 1)
            except (OSError, ValueError, SyntaxError) as error:
                raise ProtocolError(f"image {index} is a damaged PNG file ({error})") from None
    assert pixels is not None  # noqa: S101 - the schema asks for one image at least
    return Batch(pixels, request.prompts, metadata)


def _open_png(text: str, index: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
    except binascii.Error as error:
        raise ProtocolError(f"image {index} is not base64 ({error})") from None
    except Image.DecompressionBombError:
        raise TooLargeError(f"image {index} is larger than this server takes; send a smaller one") from None
    except (OSError, ValueError, SyntaxError):
        raise ProtocolError(f"image {index} is not a PNG file") from None
