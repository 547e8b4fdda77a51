"""What a run took from files and data sets when it began: its prompts, and what tells its real images from others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import CorruptFileError
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.identity import check_owner
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.reading import REMEDY, read_json


@dataclass(frozen=True)
class Inputs:
    """What a run resumes with, whatever becomes of the files."""

    prompts: Mapping[str, tuple[str, ...]]
    """Source, as the configuration names it → its prompts."""
    images: Mapping[str, str]
    """Source of real images → SHA-256 of images and captions; empty where nothing tells them from others."""


def publish_inputs(layout: RunLayout, inputs: Inputs, run: str) -> None:
    """Write down what a run, by its identity, begins with, before its configuration says that it is there."""
    values = {
        "run": run,
        "prompts": {source: list(prompts) for source, prompts in inputs.prompts.items()},
        "images": inputs.images,
    }
    record = {"format_version": FORMAT_VERSION, **values, "sha256": digest_json(values)}
    content = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    # What may be there is of a process that was killed before the run was made, or of a worker that makes it as well.
    replace_bytes(layout.inputs, content)


def read_inputs(layout: RunLayout) -> Inputs | None:
    """Read what a run began with; None: the file is not there.

    Raises the errors of `read_json`, `CorruptFileError`, and `ForeignFileError` for those of another run.
    """
    if not layout.inputs.exists():
        return None
    record = read_json(layout.inputs)
    values: dict[str, Any] = {name: record.get(name) for name in ("run", "prompts", "images")}
    if not _is_whole(values) or record.get("sha256") != digest_json(values):
        raise CorruptFileError(f"{layout.inputs}: was changed or is damaged; {REMEDY.format(path=layout.inputs)}")
    check_owner(values["run"], layout, layout.inputs)
    prompts, images = values["prompts"], values["images"]
    return Inputs({source: tuple(texts) for source, texts in prompts.items()}, dict(images))


def _is_whole(values: Mapping[str, Any]) -> bool:
    prompts, images = values["prompts"], values["images"]
    return (
        isinstance(values["run"], str)
        and isinstance(prompts, dict)
        and isinstance(images, dict)
        and all(isinstance(digest, str) for digest in images.values())
        and all(
            isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
            for texts in prompts.values()
        )
    )
