"""Every error that a user can cause or meet, and the exit status it gives the command line.

    RlcmError                      1
    ├── ConfigError                2   a setting, task, flag or prompt source that cannot be
    │   └── RunMismatchError       2   a run directory that was made with another configuration
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
    ├── RewardError                5   a reward that cannot run, or gave NaN, or the wrong count
    ├── TrainingError              6   an update that would not be the one the papers describe
    └── WorkerLostError            7   another process of the same job is gone

A message is one line that says what is wrong, where, and what to do. An exception that is not in
this tree is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class RlcmError(Exception):
    """Base of the tree: an error that the user can fix from its message."""

    exit_code: ClassVar[int] = 1


class ConfigError(RlcmError):
    """A setting, task, flag or prompt source that cannot be."""

    exit_code = 2


class RunMismatchError(ConfigError):
    """A run directory that was made with another configuration."""


class ModelError(RlcmError):
    """A model folder, hub id or adapter that cannot be used."""

    exit_code = 3


class NotFiniteError(ModelError):
    """Images that cannot be drawn, since the model gives NaN or infinity for them."""

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows
        """Of the batch, from 0."""


class StoreError(RlcmError):
    """A file of a run that cannot be used."""

    exit_code = 4


class MissingFileError(StoreError):
    """A file that a phase needs and that nobody has published yet."""


class UnreadableFileError(StoreError):
    """A file that the system does not let be read: its permissions, or a fault of the disk."""


class CorruptFileError(StoreError):
    """A file whose bytes are not those that were published."""


class ForeignFileError(StoreError):
    """A file that belongs to another run, plan or program."""


class FormatVersionError(StoreError):
    """A file that a newer version of the toolkit wrote."""


class StalePolicyError(StoreError):
    """Rollouts that another policy than the one in training drew."""


class StorageFullError(StoreError):
    """A disk that is full or read-only."""


class RemoteStoreError(StoreError):
    """An object store that cannot be reached, refuses, or keeps failing."""


class RewardError(RlcmError):
    """A reward that cannot run, or gave NaN or the wrong number of values."""

    exit_code = 5


class TrainingError(RlcmError):
    """An update that would not be the one that the papers describe."""

    exit_code = 6


class WorkerLostError(RlcmError):
    """Another process of the same job is gone, or the launcher ends the job."""

    exit_code = 7
