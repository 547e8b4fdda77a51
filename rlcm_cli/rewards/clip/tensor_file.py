"""One published file of tensors, here or on the hub, read without running what is in it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.foreign.hub import HubError, fetch_file, is_cached
from rlcm_cli.rewards.weights import one_line

if TYPE_CHECKING:
    from torch import Tensor


def find_file(file: str, *, reward: str, setting: str, size: str) -> Path:
    """Return the path of a file, downloading it where it is not here.

    Args:
        file: A path, or `OWNER/REPOSITORY/FILE` of the hub.
        reward: Name of the reward, for error messages.
        setting: Setting that names the file, for error messages.
        size: Size of the download for people, such as "1.7 GB".

    Raises:
        ConfigError: If `file` is no text, or a folder.
        RewardError: If it is not here and the hub does not give it: what to download, and where to put it.
    """
    if not isinstance(file, str) or not file:
        raise ConfigError(f"reward {reward!r}: {setting} {file!r} must be a file or OWNER/REPOSITORY/FILE of the hub")
    if Path(file).is_file():
        return Path(file)
    if Path(file).is_dir():
        raise ConfigError(f"reward {reward!r}: {setting} {file!r} is a folder; name the file in it")
    repository, name = _hub_name(file)
    if not repository:
        raise RewardError(
            f"reward {reward!r}: there is no file {file!r}; set {setting} to one that is here, or to "
            "OWNER/REPOSITORY/FILE of the hub"
        )

    try:
        return fetch_file(repository, name)
    except HubError as error:
        raise RewardError(
            f"reward {reward!r}: {file!r} is not a file here and the hub does not give it ({error}); "
            f"{_download_advice(repository, name, reward, setting, size)}"
        ) from error


def missing_file(file: str, *, reward: str, setting: str, size: str) -> str | None:
    """Say why the file is not on this machine, without asking the hub; None where it is."""
    if Path(file).is_file():
        return None
    repository, name = _hub_name(file)
    if not repository:
        return f"there is no file {file!r}"

    if not is_cached(repository, name):
        return f"{name} is not here; {_download_advice(repository, name, reward, setting, size)}"
    return None


def digest_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file that `find_file` gave."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            "loading could run code; download it again, or convert it to safetensors where you trust it"
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


def _hub_name(file: str) -> tuple[str, str]:
    """Split `OWNER/REPOSITORY/FILE`; two empty texts where it is no such name."""
    parts = file.split("/", 2)
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 and all(parts) else ("", "")


def _download_advice(repository: str, name: str, reward: str, setting: str, size: str) -> str:
    return (
        f"where there is a network, run `hf download {repository} {name} --local-dir DIR` ({size}), bring DIR here, "
        f"and --set reward_settings.{reward}.{setting}=DIR/{name}"
    )
