"""The Hugging Face hub: asked once, within seconds, and with its refusals in words."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rlcm_cli.foreign.faults import ForeignError, first_lines

ANSWER_SECONDS = 4.0
"""How long the hub may take for its first answer before it counts as out of reach."""
HUB_ID = r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?"

RepositoryKind = Literal["model", "dataset"]


class HubError(ForeignError):
    """Why the hub does not give something, in words."""


def is_hub_id(name: str) -> bool:
    """Return whether a name could be that of a repository: `NAME` or `OWNER/NAME`."""
    return re.fullmatch(HUB_ID, name) is not None


def fetch_snapshot(
    repository: str, *, revision: str | None = None, patterns: Sequence[str], kind: RepositoryKind = "model"
) -> Path:
    """Return the folder of a repository, whose name is the commit; downloads what the patterns match.

    Out of reach of the hub, that is the copy of an earlier call.

    Args:
        repository: `OWNER/NAME`.
        revision: Branch, tag or commit; None: the default branch.
        patterns: Names of files, as `huggingface_hub.snapshot_download` takes them.
        kind: Of the repository.

    Raises:
        HubError: If there is no such repository or revision, or no way to get it.
    """
    from huggingface_hub import snapshot_download

    with explained(repository, revision), reachable_or_offline():
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns), repo_type=kind))


def fetch_file(repository: str, name: str, *, revision: str | None = None) -> Path:
    """Return one file of a model repository; raises as `fetch_snapshot`."""
    from huggingface_hub import hf_hub_download

    with explained(repository, revision), reachable_or_offline():
        return Path(hf_hub_download(repository, name, revision=revision))


def list_files(repository: str, *, revision: str | None = None) -> tuple[str, list[str]]:
    """Return the commit of a model repository and the names of its files; raises as `fetch_snapshot`.

    Out of reach of the hub, those of the copy in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download

    with explained(repository, revision), reachable_or_offline() as reachable:
        if not reachable:
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=["model_index.json"]))
            return folder.name, [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        found = HfApi().model_info(repository, revision=revision)
        return str(found.sha), [file.rfilename for file in found.siblings or []]


def measure_files(repository: str, *, revision: str | None = None) -> dict[str, int]:
    """Return the bytes of each file of a model repository by its name; raises as `fetch_snapshot`.

    Out of reach of the hub, those of the copy in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download

    with explained(repository, revision), reachable_or_offline() as reachable:
        if not reachable:
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=["model_index.json"]))
            return {
                file.relative_to(folder).as_posix(): file.stat().st_size
                for file in folder.rglob("*")
                if file.is_file()
            }
        found = HfApi().model_info(repository, revision=revision, files_metadata=True)
        return {file.rfilename: file.size or 0 for file in found.siblings or []}


def list_cached(repository: str, names: Iterable[str], *, revision: str) -> list[str]:
    """Return those of some files of a commit that were downloaded before; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    return [name for name in names if isinstance(try_to_load_from_cache(repository, name, revision=revision), str)]


def is_cached(repository: str, name: str | None = None, *, patterns: Sequence[str] = ()) -> bool:
    """Return whether a file, or what the patterns match, was downloaded before; the hub is not asked."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if name is not None:
            hf_hub_download(repository, name, local_files_only=True)
        else:
            snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def reachable_or_offline() -> Iterator[bool]:
    """Work offline within the block where the hub is out of reach; the value says whether it is reachable.

    Without this, the libraries try each file six times, for half a minute.
    """
    from huggingface_hub import constants

    fault = find_hub_fault()
    if constants.HF_HUB_OFFLINE or not fault:
        yield not constants.HF_HUB_OFFLINE
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield False
    finally:
        constants.HF_HUB_OFFLINE = False


def find_hub_fault() -> str:
    """Return why the hub cannot be asked, "" where it can; it is tried once in a process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    fault = _ask_once(constants.ENDPOINT)
    return fault and f"the hub ({urlsplit(constants.ENDPOINT).hostname}) {fault}"


def ask(address: str) -> str:
    """Ask for a page within `ANSWER_SECONDS`; return what was wrong, "" where nothing was.

    In a thread: looking up a name waits for as long as the system's resolver likes.
    """
    import httpx2

    answers: list[str] = []

    def try_it() -> None:
        try:
            status = httpx2.head(address, timeout=ANSWER_SECONDS).status_code
            answers.append("" if status < 500 else f"answers with status {status}")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            answers.append(f"cannot be reached ({type(error).__name__})")

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else f"does not answer within {ANSWER_SECONDS:.0f} s"


_ask_once = functools.cache(ask)


@contextlib.contextmanager
def explained(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises within the block into a `HubError`."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = find_hub_fault()
    try:
        yield
    except HubError:
        raise
    except HFValidationError:
        raise HubError(f"{repository!r} is not a hub id (OWNER/NAME)") from None
    except IncompleteSnapshotError:
        raise HubError(
            f"{unreachable or 'the hub cannot be reached'}; the copy of {repository} in the cache is incomplete"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        # It stands for every failure to find out what the hub has; the cause tells which.
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            raise HubError(_describe_status(repository, cause.response.status_code)) from None
        found = unreachable or f"the hub cannot be reached ({type(cause or error).__name__})"
        raise HubError(f"{found}; no local copy of {repository} in the cache") from None
    except GatedRepoError:
        raise HubError(
            f"{repository} is gated; accept its terms on its page ({constants.ENDPOINT}/{repository}), and log in "
            "with `hf auth login` or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise HubError(f"the hub has no repository {repository}, or it is private and needs `hf auth login`") from None
    except RevisionNotFoundError:
        raise HubError(f"{repository} has no revision {revision!r}") from None
    except EntryNotFoundError as error:
        raise HubError(f"{repository} has no such file ({first_lines(error)})") from None
    except HfHubHTTPError as error:
        raise HubError(_describe_status(repository, error.response.status_code)) from None
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise HubError(
            f"{unreachable or 'the connection to the hub failed'} ({type(error).__name__}); run the same command again"
        ) from None
    except OSError as error:
        raise HubError(f"{repository} cannot be downloaded ({error.strerror or first_lines(error)})") from None


def _describe_status(repository: str, status: int) -> str:
    if status in (401, 403):
        return f"the hub does not show {repository} to you (status {status}); log in with `hf auth login`"
    if status == 404:
        return f"the hub has no repository {repository} (status 404)"
    return f"the hub answers with status {status} for {repository}; try again later"
