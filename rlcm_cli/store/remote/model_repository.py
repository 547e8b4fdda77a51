"""A folder as a model repository of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from rlcm_cli.errors import ConfigError, RemoteStoreError

MADE_BY_THE_HUB = {".gitattributes"}


def check_repository(repository: str, *, public: bool, overwrite: bool) -> None:
    """Make sure that a folder can be uploaded as a repository, without making it.

    The token is the one of the environment (HF_TOKEN) or of `hf auth login`. Raises `ConfigError` for a name that
    cannot be, a repository that holds something already unless `overwrite`, or that is public unless `public`; and
    `RemoteStoreError` where the hub cannot be reached or knows no token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"--hub {repository}: write OWNER/NAME")
    api = HfApi()
    with _explained(repository):
        api.whoami()
        try:
            found = api.model_info(repository)
        except RepositoryNotFoundError:
            return
    if not found.private and not public:
        raise ConfigError(f"--hub {repository}: is there and public; add --public, or choose another name")
    if not overwrite and {file.rfilename for file in found.siblings or []} - MADE_BY_THE_HUB:
        raise ConfigError(f"--hub {repository}: holds files already; add --overwrite, or choose another name")


def upload_folder(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload a folder, to a repository that is made where there is none; return its address.

    Raises `RemoteStoreError`.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(repository):
        url = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return str(url)


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise RemoteStoreError(f"--hub {repository}: HF_HUB_OFFLINE is set; unset it, or leave --hub out") from None
    except LocalTokenNotFoundError:
        raise RemoteStoreError(
            f"--hub {repository}: there is no token; run `hf auth login`, or set HF_TOKEN to one that may write"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise RemoteStoreError(
                f"--hub {repository}: the hub refuses the token (status {status}); use one that may write there, by "
                "`hf auth login` or HF_TOKEN"
            ) from None
        raise RemoteStoreError(
            f"--hub {repository}: the hub answers with status {status}; try again later, or leave --hub out"
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        raise RemoteStoreError(
            f"--hub {repository}: the hub cannot be reached ({type(error).__name__}); look at the network, or leave "
            "--hub out"
        ) from None
