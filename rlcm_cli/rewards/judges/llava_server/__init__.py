"""A judge behind kvablack/LLaVA-server: a pickled dict over HTTP, as its `app.py` reads and writes it.

Request: `images`, B JPEG files; `queries`, B lists of questions; optionally `answers`, B lists of references.
Answer: `outputs`, B lists of texts; where references came, `precision`, `recall`, `f1`, B lists of numbers.

This is the only room that reads or writes pickles, and nothing imports it: it is found by being in its folder.
"""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.judges import Judge, JudgeSettings
from rlcm_cli.rewards.judges._endpoint import find_endpoint, find_endpoint_fault, find_missing_endpoint
from rlcm_cli.rewards.judges._images import encode_jpeg, to_pillow
from rlcm_cli.rewards.judges._server import ANSWER_LIMIT, JudgeServer
from rlcm_cli.rewards.judges.llava_server.pickles import RefusedPickleError, read_pickle

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

JPEG_QUALITY = 80
BATCH = 16
"""Images per request; both as in the published client (kvablack/ddpo-pytorch, rewards.py)."""

_PICKLE_PROTOCOL = 4  # read by every Python that the server runs on


class LlavaServerJudge:
    """Asks one question per image, in batches of 16 JPEGs of quality 80.

    Raises:
        ConfigError: If the address from the environment is not one.
        RewardError: If the address is not set.
    """

    def __init__(self, settings: JudgeSettings, reward: str) -> None:
        if obstacle := _find_obstacle(settings, reward):
            raise RewardError(f"reward {reward!r}: {obstacle}")
        self._url = find_endpoint(settings, reward)
        self._settings = settings
        self._reward = reward

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Answer one question per image; see `AskFn`."""
        return self._ask(images, {"queries": questions}, "outputs", str)

    def recall(self, images: Tensor, question: str, references: Sequence[str]) -> list[float]:
        """Return the server's own BERTScore recall of its answers against B references."""
        texts = {"queries": [question] * len(references), "answers": references}
        return self._ask(images, texts, "recall", float)

    def _ask(self, images: Tensor, texts: dict[str, Sequence[str]], wanted: str, kind: type) -> list[Any]:
        pictures = to_pillow(images)
        server = JudgeServer(self._url, self._settings, reward=self._reward)

        def write(start: int) -> bytes:
            rows = slice(start, start + BATCH)
            return _write_request(
                pictures[rows], {name: [[text] for text in column[rows]] for name, column in texts.items()}
            )

        def read(start: int, body: bytes) -> list[Any]:
            return _read_column(server, body, wanted, kind, len(pictures[start : start + BATCH]))

        batches = server.map(write, range(0, len(pictures), BATCH), "application/octet-stream", read)
        return [value for batch in batches for value in batch]


def _write_request(pictures: Sequence[Image], texts: dict[str, list[list[str]]]) -> bytes:
    request = {"images": [encode_jpeg(picture, JPEG_QUALITY) for picture in pictures], **texts}
    return pickle.dumps(request, protocol=_PICKLE_PROTOCOL)


def _read_column(server: JudgeServer, body: bytes, name: str, kind: type, count: int) -> list[Any]:
    """Return the only value of each of `count` rows."""
    try:
        answer = read_pickle(body, ANSWER_LIMIT)
    except RefusedPickleError as error:
        raise server.malformed(str(error)) from error
    rows = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise server.malformed(f"{name} is {reprlib.repr(rows)}, not {count} rows")
    for row in rows:
        if not isinstance(row, list) or len(row) != 1 or type(row[0]) is not kind:
            raise server.malformed(f"{name} has the row {reprlib.repr(row)}, not one {kind.__name__}")
    return [row[0].strip() if kind is str else row[0] for row in rows]


def _find_fault(settings: JudgeSettings) -> str | None:
    if settings.model is not None:
        return "a LLaVA-server serves one model; leave model unset"
    return find_endpoint_fault(settings)


def _find_obstacle(settings: JudgeSettings, reward: str) -> str | None:
    return find_missing_endpoint(settings, reward, example="http://127.0.0.1:8085")


JUDGE = Judge(
    "llava-server",
    make=LlavaServerJudge,
    find_fault=_find_fault,
    find_obstacle=_find_obstacle,
    revise=lambda settings, reward: "llava-server",
    make_recall=lambda settings, reward: LlavaServerJudge(settings, reward).recall,
)
