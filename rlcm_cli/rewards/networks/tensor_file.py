"""One published file of tensors, read without running what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.errors import RewardError
from rlcm_cli.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(path: Path, *, reward: str) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a file of `torch.save`, on the CPU.

    A pickle is read by torch's restricted unpickler, which admits tensors and plain containers: code in it does
    not run. A state dict below the key `state_dict` of a training checkpoint is unwrapped.

    Args:
        path: The file; safetensors by the name's end.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If the file is damaged, holds anything else than tensors by name, or would run code.
    """
    import pickle
    import warnings

    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message is a page, and recommends to allow the code.
        raise RewardError(
            f"reward {reward!r}: {path} is refused: it is damaged, or holds something else than tensors, whose "
            "loading could run code; download it again, or convert it to safetensors if you trust it"
        ) from error
    # The bytes of a damaged pickle are instructions, and fail in any way: IndexError, KeyError, AssertionError, ….
    except Exception as error:
        raise RewardError(
            f"reward {reward!r}: {path} cannot be read as a file of tensors ({one_line(error)}); download it again"
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise RewardError(f"reward {reward!r}: {path} does not hold tensors by name; name the file of the weights")
    return tensors
