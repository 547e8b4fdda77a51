"""Every error that a user can cause or encounter, and its exit status on the command line.

    RlcmError                      1
    ├── ConfigError                2   an invalid setting, task, flag or prompt source
    │   └── RunMismatchError       2   a run directory that was created with another configuration
    ├── ModelError                 3   a model folder, hub id or adapter that cannot be used
    │   └── NotFiniteError         3   … because it gives NaN or infinity for an image
    ├── StoreError                 4   a file of a run that cannot be used
    │   ├── MissingFileError       4   … because it is not there
    │   ├── UnreadableFileError    4   … because the system does not let it be read
    │   ├── CorruptFileError       4   … because its bytes are not those that were published
    │   ├── ForeignFileError       4   … because it belongs to another run, plan or program
    │   ├── FormatVersionError     4   … because a newer version wrote it
    │   ├── StalePolicyError       4   … because another policy drew it
    │   ├── StorageFullError       4   … because the disk is full or read-only
    │   └── RemoteStoreError       4   … because the object store cannot be reached or refuses
    ├── RewardError                5   a reward that cannot run, or returned NaN or the wrong count
    ├── TrainingError              6   an update that would be wrong (ratio not 1, NaN, no gradient)
    └── WorkerLostError            7   another process of the same job is gone

A message is one line that says what is wrong, where, and what to do. An exception that is not in
this tree is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class RlcmError(Exception):
    """Base of the tree: an error that the user can fix from its message."""

    exit_code: ClassVar[int] = 1


class ConfigError(RlcmError):
    """An invalid setting, task, flag or prompt source."""

    exit_code = 2


class RunMismatchError(ConfigError):
    """A run directory that was created with another configuration."""


class ModelError(RlcmError):
    """A model folder, hub id or adapter that cannot be used."""

    exit_code = 3


class NotFiniteError(ModelError):
    """Images that cannot be generated, because the model returns NaN or infinity for them."""

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows
        """Rows of the batch, from 0."""


class StoreError(RlcmError):
    """A file of a run that cannot be used."""

    exit_code = 4


class MissingFileError(StoreError):
    """A file that a phase needs but that has not been published yet."""


class UnreadableFileError(StoreError):
    """A file that the system cannot read, because of its permissions or a disk fault."""


class CorruptFileError(StoreError):
    """A file whose bytes are not those that were published."""


class ForeignFileError(StoreError):
    """A file that belongs to another run, plan or program."""


class FormatVersionError(StoreError):
    """A file that a newer version of the toolkit wrote."""


class StalePolicyError(StoreError):
    """Rollouts that were sampled by a policy other than the one being trained."""


class StorageFullError(StoreError):
    """A disk that is full or read-only."""


class RemoteStoreError(StoreError):
    """An object store that cannot be reached, refuses, or keeps failing."""


class RewardError(RlcmError):
    """A reward that cannot run, or returned NaN or the wrong number of values."""

    exit_code = 5


class TrainingError(RlcmError):
    """An update that would be wrong."""

    exit_code = 6


class WorkerLostError(RlcmError):
    """Another process of the same job is gone, or the launcher is ending the job."""

    exit_code = 7
