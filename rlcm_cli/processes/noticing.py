"""How a process learns that another one of its job is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from rlcm_cli.errors import WorkerLostError

PATIENCE = timedelta(hours=6)
"""How long a process waits for another: a slow judge may hold one up for hours. One that died is noticed at once."""
NOTHING_LOST = "nothing is lost; rerun the same command to resume"


@contextmanager
def noticing_loss() -> Iterator[None]:
    """Raise `WorkerLostError` where an exchange in the block fails, as it does when another process is gone."""
    try:
        yield
    except torch.OutOfMemoryError:  # this process's own
        raise
    except RuntimeError as error:  # what torch raises for a closed connection, and when its time is up
        timed_out = "timed out" in str(error).lower()
        what = f"has not answered for {PATIENCE.seconds // 3600} hours" if timed_out else "is gone"
        raise WorkerLostError(
            f"a process of this job {what} (killed, out of memory, or stopped by its own error); {NOTHING_LOST}"
        ) from error
