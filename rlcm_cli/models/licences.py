"""The licence of a base model, as its model card states it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlcm_cli.foreign.hub import HubError, fetch_file
from rlcm_cli.models.embedded import embedded_folder


@dataclass(frozen=True)
class Licence:
    """A licence as a model card's header names it."""

    identifier: str
    """Of the hub's list, such as `apache-2.0`; `other` where the two below tell."""
    name: str | None = None
    link: str | None = None


def read_licence(model: str, revision: str | None) -> Licence | None:
    """Read what the card of an embedded model, a pipeline folder or a hub id says; None where it cannot be read."""
    import yaml
    from huggingface_hub import ModelCard

    folder = embedded_folder(model) or Path(model)
    try:
        file = folder / "README.md" if folder.is_dir() else fetch_file(model, "README.md", revision=revision)
        data = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError, HubError, yaml.YAMLError):  # no card, no network, or one that is not text
        return None
    identifier = data.get("license")
    if not isinstance(identifier, str):
        return None
    link = data.get("license_link")
    # A file next to the card, as some state, is not next to ours.
    return Licence(identifier, data.get("license_name"), link if str(link).startswith("https://") else None)
