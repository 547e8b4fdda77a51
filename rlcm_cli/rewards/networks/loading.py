"""Networks of transformers filled with published weights, whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.folders import check_configuration, read_json_object
from rlcm_cli.foreign.weights import check_report, check_tensors, find_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = ("auto", "float32", "float16", "bfloat16")
"""What a setting `dtype` may be; `auto` is the one that the weights were saved in."""

_log = logging.getLogger(__name__)


def load_network(kind: Any, folder: Path, *, reward: str, what: str, dtype: Any = None) -> Any:
    """Load a network of the hub's layout from safetensors, frozen and ready to run.

    Args:
        kind: Class of transformers, such as `AutoModel`.
        folder: Holds its configuration and weights.
        reward: Name of the reward, for error messages.
        what: What the network should be, such as "an image classifier", for error messages.
        dtype: Of the weights, as transformers takes it; None: float32.

    Raises:
        RewardError: If it cannot be loaded whole.
    """
    import torch

    try:
        variant = look_at(folder)
        with quiet_transformers(), faults_of_libraries():
            network, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                variant=variant,
                dtype=dtype or torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them
            )
    except ForeignError as error:
        raise RewardError(
            f"reward {reward!r}: {folder} cannot be loaded as {what} of transformers ({error}); name another folder "
            "or hub id"
        ) from error
    check_complete(report, folder, reward=reward)
    if variant is not None:
        _log.warning("reward %r: %s is there as the %s variant only", reward, folder, variant)
    if report["unexpected_keys"]:
        keys = sorted(report["unexpected_keys"])
        unused = f"{len(keys)} tensors that its config.json has no place for, '{keys[0]}' among them"
        _log.warning("reward %r: the weights in %s hold %s: they are not used", reward, folder, unused)
    return network.eval().requires_grad_(False)


def look_at(folder: Path) -> str | None:
    """Look at a folder of the hub's layout before transformers reads it; return the variant of its weights, or None.

    Raises `ForeignError` where it names code, lacks safetensors weights, or leads out of itself.
    """
    config = read_json_object(folder / "config.json")
    check_configuration(config, folder / "config.json")
    variant, files = find_weights(folder, "model")
    if not config.get("quantization_config"):
        for file in files:
            check_tensors(file)
    return variant


def fill_network(
    kind: Any,
    config: Any,
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    reward: str,
    dtype: torch.dtype | None = None,
    **arguments: Any,
) -> Any:
    """Build a network and give it its weights.

    Args:
        kind: Class of transformers.
        config: Its configuration.
        tensors: Its state dict, of any floating dtype.
        path: File that the tensors were read from, for error messages.
        reward: Name of the reward, for error messages.
        dtype: Of the network; None: float32.
        arguments: More of the class's own arguments.

    Raises:
        RewardError: If a weight is missing, has another shape, or has no place in the network.
    """
    import torch

    try:
        with quiet_transformers(), faults_of_libraries():
            network, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=dtype or torch.float32,
                output_loading_info=True,
                **arguments,
            )
    except ForeignError as error:
        raise RewardError(
            f"reward {reward!r}: {path} cannot be loaded into a {kind.__name__} ({error}); name the published file"
        ) from error
    check_complete(report, path, reward=reward)
    if report["unexpected_keys"]:
        raise RewardError(
            f"reward {reward!r}: {path} holds {', '.join(sorted(report['unexpected_keys'])[:3])}, which the "
            f"{kind.__name__} does not have; name the published file"
        )
    return network


def check_complete(report: Mapping[str, Any], source: Path, *, reward: str) -> None:
    """Refuse a network that transformers has completed with random numbers, which it only logs.

    Args:
        report: What `from_pretrained(output_loading_info=True)` gives.
        source: Where the weights came from.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If weights were missing or of another shape.
    """
    try:
        check_report(report)
    except ForeignError as error:
        raise RewardError(f"reward {reward!r}: the weights in {source} {error}; name a complete model") from None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and loading report off the terminal: only the command line prints."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()
