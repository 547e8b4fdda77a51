"""Folders that hold only the configurations of pipelines of published sizes, as a repository's first files."""

from __future__ import annotations

import json
from pathlib import Path

from rlcm_cli.models.architectures import build_architecture, build_text_encoders


def write_configurations(name: str, folder: Path) -> Path:
    """Write model_index.json and the configurations of a known architecture: no weights, and no tokenizer."""
    pipeline = build_architecture(name, dtype="bfloat16", device="meta").pipeline
    encoders = build_text_encoders(name, dtype="bfloat16", device="meta")
    index = {key: value for key, value in pipeline.config.items() if not isinstance(value, list | tuple)}
    for part, component in {**pipeline.components, **encoders}.items():
        if component is None:
            continue
        if part in encoders:
            component.config.save_pretrained(folder / part)
        else:
            component.save_config(folder / part)
        index[part] = [type(component).__module__.partition(".")[0], type(component).__name__]
        if part in encoders:
            index[part.replace("text_encoder", "tokenizer")] = ["transformers", "PreTrainedTokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": type(pipeline).__name__}))
    return folder
