"""The folders that runs and caches lie in, the embedded models, and the hub."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from rlcm_cli.foreign.hub import ask
from rlcm_cli.measuring.doctor.finding import Finding, shorten_home
from rlcm_cli.models.embedded import EMBEDDED
from rlcm_cli.models.embedded.integrity import find_damaged
from rlcm_cli.store.cache import cache_folder, stages_folder
from rlcm_cli.wording import format_size, join_words

LITTLE_DISK = 10e9
SIZE_SECONDS = 1.0


def check_runs(folder: Path) -> Finding:
    """Return whether runs can be written, and how much room there is."""
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    shown = shorten_home(folder.absolute())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"written")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        advice = "choose another folder by --run, or change its permissions"
        return Finding("runs", "problem", f"{shown} cannot be written ({error.strerror})", advice)
    found = f"{shown} can be written, {format_size(free)} free"
    if free < LITTLE_DISK:
        advice = "free some, or bound runs by --keep-rollouts and --keep-checkpoints"
        return Finding("runs", "note", found, advice)
    return Finding("runs", "ok", found)


def check_embedded() -> Finding:
    """Return whether the embedded models are as they were shipped."""
    damaged = find_damaged()
    if damaged:
        advice = "pip install --force-reinstall --no-deps . (in a checkout of rlcm)"
        return Finding("embedded models", "problem", f"{join_words(damaged)}: not as shipped", advice)
    found = f"{join_words(list(EMBEDDED))}, with the digests that they were shipped with"
    return Finding("embedded models", "ok", found)


def check_caches() -> Iterator[Finding]:
    """Report where downloads, scores and remote runs are kept, and how large that has become."""
    from huggingface_hub import constants

    for topic, folder in (
        ("hub cache", Path(constants.HF_HUB_CACHE)),
        ("rlcm cache", cache_folder()),
        ("remote runs", stages_folder()),
    ):
        shown = shorten_home(folder)
        if not folder.is_dir():
            yield Finding(topic, "ok", f"{shown}: not there yet")
        elif not os.access(folder, os.W_OK):
            yield Finding(
                topic, "note", f"{shown}: cannot be written", "change its permissions, or set HF_HOME or RLCM_CACHE"
            )
        else:
            yield Finding(topic, "ok", f"{shown}: {_measure_folder(folder)}")


def check_hub() -> Finding:
    """Return whether the hub answers, and whether there is a token, which is not shown."""
    from huggingface_hub import constants, get_token

    token = "a token is set" if get_token() else "no token"
    if constants.HF_HUB_OFFLINE:
        advice = "unset it to load other models than those that are here"
        return Finding("hub", "note", f"HF_HUB_OFFLINE is set; {token}", advice)
    host = urlsplit(constants.ENDPOINT).hostname
    fault = ask(constants.ENDPOINT)
    if fault:
        advice = "the embedded models need no network; for others look at the network and HTTPS_PROXY"
        return Finding("hub", "note", f"{host} {fault}; {token}", advice)
    return Finding("hub", "ok", f"{host} answers; {token}")


def _measure_folder(folder: Path) -> str:
    """Return the size of a folder, or, of a very full one, of what was seen in `SIZE_SECONDS`."""
    size, until = 0, time.monotonic() + SIZE_SECONDS
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # gone meanwhile
                continue
        if time.monotonic() > until:
            return f"more than {format_size(size)}"
    return format_size(size)
