"""Where a pipeline lies: an embedded model, a folder here or a snapshot of the hub, looked at before it is loaded."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import list_components
from rlcm_cli.foreign.faults import ForeignError
from rlcm_cli.foreign.folders import check_configuration, read_json_object, suggest_path
from rlcm_cli.foreign.hub import (
    HubError,
    fetch_file,
    fetch_snapshot,
    is_hub_id,
    list_cached,
    list_files,
    measure_files,
)
from rlcm_cli.foreign.weights import PICKLES, check_tensors, choose_variant, find_weights, variant_of
from rlcm_cli.models.embedded import EMBEDDED, embedded_folder
from rlcm_cli.models.single_files import explain_single_file

INDEX = "model_index.json"
WEIGHT_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Name of a weights file before its variant and its ending, by library."""
LORA_NAME = r"^[^/]*lora[^/]*\.safetensors$"
"""Of a file at the top of a repository."""
EMBEDDED_ADVICE = "use the embedded model: --model emoji-lcm"


@dataclass(frozen=True)
class PipelineFolder:
    """A folder in the layout of diffusers' pipelines."""

    name: str
    """As the user names the model."""
    path: Path
    commit: str | None = None
    """Of a hub id: the commit that the revision names."""

    def read_index(self) -> dict[str, Any]:
        """Read model_index.json, in which every component is [library, class]. Raises `ModelError`."""
        index = self._read(INDEX)
        for part, value in index.items():
            if not part.startswith("_") and isinstance(value, list) and not _is_class(value):
                raise ModelError(f"{self.name}: {INDEX} says {part}: {value}, which is not [library, class]; fix it")
        for part in (*list_components(), "scheduler"):
            if part in index and not isinstance(index[part], list):
                raise ModelError(
                    f"{self.name}: {INDEX} says {part}: {index[part]!r}, which is not [library, class]; fix it"
                )
        return index

    def read_config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """Read a component's configuration.

        Raises `ModelError` where it is missing or not readable, names code of the hub, or weights that are quantised.
        """
        values = self._read(f"{part}/{file}")
        if values.get("quantization_config"):
            raise ModelError(
                f"{self.name}: the weights of its {part} are quantised (quantization_config in {part}/{file}), which "
                "is not supported; use the model's float32, float16 or bfloat16 weights"
            )
        return values

    def find_variant(self, part: str, library: str) -> str | None:
        """Return the variant of a component's weights that there is, such as fp16; None for those without a name.

        Raises `ModelError` where there are no weights in safetensors, where they are no floats, or where an index
        names a file that is not next to it.
        """
        stem = WEIGHT_STEMS[library]
        with self.explained():
            variant, files = find_weights(self.path / part, stem)
            for file in files:
                check_tensors(file)
        return variant

    @contextlib.contextmanager
    def explained(self, advice: str = "use whole files of one model") -> Iterator[None]:
        """Turn a `ForeignError` within the block into a `ModelError` that names the model."""
        try:
            yield
        except ForeignError as fault:
            raise ModelError(f"{self.name}: {fault}; {advice}") from fault

    def _read(self, file: str) -> dict[str, Any]:
        with self.explained("it needs model_index.json and a folder for each component, with safetensors weights"):
            values = read_json_object(self.path / file)
            check_configuration(values, self.path / file)
        return values


def find_pipeline(name: str, revision: str | None, *, weights: bool = True) -> PipelineFolder:
    """Find the pipeline that a model's name means, downloading it where it is not here.

    Args:
        name: An embedded model, a folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        weights: Whether more than the configurations is needed.

    Raises:
        ModelError: If it is not there, is a file, or cannot be downloaded.
    """
    embedded = embedded_folder(name)
    if embedded is not None:
        return PipelineFolder(name, embedded)
    path = Path(name).expanduser()
    if path.is_file() or path.suffix in (".safetensors", *PICKLES):
        raise ModelError(explain_single_file(name, path))
    if path.is_dir():
        if not (path / INDEX).exists():
            raise ModelError(_explain_no_index(name, [file.name for file in path.iterdir()]))
        return PipelineFolder(name, path)
    missing = f"model '{name}' is not a folder here{suggest_path(name)}"
    if not is_hub_id(name):
        raise ModelError(f"{missing}, nor a hub id (OWNER/NAME); check the path, or {EMBEDDED_ADVICE}")
    near = difflib.get_close_matches(name, EMBEDDED, n=1)
    meant = f"did you mean {near[0]}? Else check" if near else "check"
    try:
        commit, patterns = _choose_downloads(name, revision, weights=weights)
        folder = fetch_snapshot(name, revision=commit, patterns=patterns)
        if weights and revision != commit and (folder / INDEX).exists():
            fetch_file(name, INDEX, revision=revision)  # so that the cache knows the branch, where the hub is away
    except HubError as fault:
        raise ModelError(
            f"{missing}, and could not be loaded from the hub: {fault}; {meant} the name and the network, or "
            f"{EMBEDDED_ADVICE}"
        ) from fault
    if not (folder / INDEX).exists():
        raise ModelError(_explain_no_index(name, [file.name for file in folder.iterdir()]))
    return PipelineFolder(name, folder, folder.name)


@dataclass(frozen=True)
class Download:
    """The files of a pipeline that are loaded, of a hub id those that are downloaded for it."""

    files: int
    size: int
    """Bytes."""
    here: int
    """Bytes of those that lie on this machine."""


def measure_download(folder: PipelineFolder) -> Download:
    """Measure the files of a pipeline that was found; the hub is asked for their sizes. Raises `ModelError`."""
    if folder.commit is None:
        sizes = [file.stat().st_size for file in folder.path.rglob("*") if file.is_file()]
        return Download(len(sizes), sum(sizes), sum(sizes))
    try:
        commit, patterns = _choose_downloads(folder.name, folder.commit, weights=True)
        sizes_of = measure_files(folder.name, revision=commit)
    except HubError as fault:
        raise ModelError(f"{folder.name}: {fault}") from fault
    wanted = [name for name in sizes_of if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    here = list_cached(folder.name, wanted, revision=folder.commit)
    return Download(len(wanted), sum(sizes_of[name] for name in wanted), sum(sizes_of[name] for name in here))


def _choose_downloads(name: str, revision: str | None, *, weights: bool) -> tuple[str | None, list[str]]:
    """Return the commit, and the files of a hub repository that are needed: of weights in several kinds, one.

    Raises `ModelError` where the repository holds something else than a pipeline.
    """
    commit, files = list_files(name, revision=revision)
    if files and INDEX not in files:
        raise ModelError(_explain_no_index(name, files))
    chosen = [INDEX, "*/*.json"] + ["tokenizer*/*.txt", "tokenizer*/*.jinja", "tokenizer*/*.model"] * weights
    if not weights:
        modules = [part for part in list_components() if not part.startswith("tokenizer")]
        return commit, [INDEX, *(f"{part}/config.json" for part in modules), "scheduler/scheduler_config.json"]
    for part, library in list_components().items():
        stem = WEIGHT_STEMS[library]
        names = [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/{stem}")]
        variants = {variant_of(n, stem) for n in names if n.endswith(".safetensors")}
        if variants:
            wanted = choose_variant(list(variants), f"{part}/{stem}")
            chosen += [f"{part}/{n}" for n in names if n.endswith(".safetensors") and variant_of(n, stem) == wanted]
    return commit, chosen


def _is_class(value: list[Any]) -> bool:
    return len(value) == 2 and all(item is None or isinstance(item, str) for item in value)


def _explain_no_index(name: str, files: Sequence[str]) -> str:
    """Return the line that says why a folder or repository with these files is no pipeline, and what to do."""
    loras = sorted(file for file in files if re.search(LORA_NAME, file, re.IGNORECASE))
    if len(loras) > 1:
        return (
            f"{name}: holds {len(loras)} LoRAs, not a pipeline; name the pipeline that they were made for as --model, "
            f"and one of them, such as --set model.distilled_lora={name}/{loras[0]} where few steps were distilled "
            "into it, else by `generate --lora`"
        )
    if loras or "adapter_config.json" in files:
        return f"{name}: holds a LoRA, not a pipeline; use it with `generate --lora`, and a pipeline as --model"
    if "config.json" in files:
        return (
            f"{name}: is one component or another kind of model, not a pipeline of diffusers (no {INDEX}); name the "
            "folder of the whole pipeline"
        )
    return (
        f"{name}: is not a pipeline of diffusers (no {INDEX}); it needs {INDEX} and a folder for each component, "
        "all with safetensors weights"
    )
