"""Networks of transformers filled with published weights, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.weights import one_line, quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor


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
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            network, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype or torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RewardError(
            f"reward {reward!r}: {folder} cannot be loaded as {what} of transformers ({one_line(error)}); name "
            "another folder or hub id"
        ) from error
    check_complete(report, folder, reward=reward)
    return network.eval().requires_grad_(False)


def fill_network(
    kind: Any, config: Any, tensors: Mapping[str, Tensor], path: Path, *, reward: str, **arguments: Any
) -> Any:
    """Build a network and give it its weights, in float32.

    Args:
        kind: Class of transformers.
        config: Its configuration.
        tensors: Its state dict, of any floating dtype.
        path: File that the tensors were read from, for error messages.
        reward: Name of the reward, for error messages.
        arguments: More of the class's own arguments.

    Raises:
        RewardError: If a weight is missing, has another shape, or has no place in the network.
    """
    import torch

    try:
        with quiet_transformers():
            network, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                output_loading_info=True,
                **arguments,
            )
    except (ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {reward!r}: {path} cannot be loaded into a {kind.__name__} ({one_line(error)}); name the "
            "published file"
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
        RewardError: If weights were missing.
    """
    if report["missing_keys"]:
        first, *others = sorted(report["missing_keys"])
        raise RewardError(
            f"reward {reward!r}: the weights in {source} lack {first}{f' and {len(others)} more' if others else ''}; "
            "name a complete model"
        )
