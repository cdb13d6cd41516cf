"""Every error batchdet raises, as one tree. Knows nothing of what raises them.

BatchdetError
├── UserError                  the person can mend it; exit 2, one line, no traceback
│   ├── ConfigError            a field of the job, a flag or a file given by hand
│   ├── SourceError            the images: bucket, prefix, glob or manifest
│   ├── OutputError            the output folder
│   │   └── SchemaVersionError it was written with another schema version
│   ├── ModelError             the model reference, its weights or its categories
│   │   └── DownloadError      published weights that this machine cannot fetch
│   └── ClusterError           the Ray cluster: address, version, resources
├── StorageError               one object or folder could not be read or written
│   ├── TransientStorageError  throttling, resets, time-outs: worth another try
│   ├── NotFoundError          no such bucket, key or file
│   ├── AccessDeniedError      credentials missing or without the right
│   └── ConflictError          somebody else wrote it meanwhile
├── OutputHeldError            another run holds the output, or took it from this one; exit 75
├── DecodeError                the bytes of one image are not a picture; becomes a failed row
├── OutOfMemoryError           the device refused a batch; the pipeline halves it
├── RunError                   the run did not end complete; exit 1
│   ├── OpenShardsError        some shards have no commit marker
│   ├── FailureRateError       more images failed than limits.max_failure_rate allows
│   ├── InterruptedRunError    Ctrl-C or SIGTERM
│   └── DivergedError          a training's loss is no longer a number
├── GateError                  a model is not promoted: it measures worse than the live one; exit 3
├── DriftError                 pseudo-labels are unlike gold; exit 3
├── AlarmError                 what changed between two runs is past a threshold; exit 3
├── AuditError                 the receipt does not add up; exit 3
└── NightError                 a night did not go well; exits as what ended it
"""

from typing import ClassVar


class BatchdetError(Exception):
    """Root of the tree.

    Attributes:
        exit_code: what the command line exits with when this error ends it.
    """

    exit_code: int = 1


class UserError(BatchdetError):
    """Something a person can mend; the message names the field or URI and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """A field of the job, a flag or a hand-written file is wrong."""


class SourceError(UserError):
    """The source of images cannot be listed, or holds none."""


class OutputError(UserError):
    """The output folder cannot be used."""


class SchemaVersionError(OutputError):
    """The output was written with another schema version."""


class ModelError(UserError):
    """The model reference, its weights or its categories are unusable."""


class DownloadError(ModelError):
    """Published weights are not on this machine, and cannot be downloaded from it."""


class ClusterError(UserError):
    """The Ray cluster cannot be reached or cannot hold a labeller."""


class StorageError(BatchdetError):
    """One object or folder could not be read or written.

    Attributes:
        uri: the object or folder.
        reason: one line, without secrets.
        code: stable word for a failed row: `storage_error`, `transient`, `not_found`, `access_denied`,
            `conflict`.
    """

    code: ClassVar[str] = "storage_error"

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"{uri}: {reason}")
        self.uri = uri
        self.reason = reason

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, str]]:
        return type(self), (self.uri, self.reason)


class TransientStorageError(StorageError):
    """Throttling, a reset connection, a time-out: the only storage error that is retried."""

    code = "transient"


class NotFoundError(StorageError):
    """No such bucket, key or file."""

    code = "not_found"


class AccessDeniedError(StorageError):
    """Credentials are missing or lack the right."""

    code = "access_denied"


class ConflictError(StorageError):
    """The object is there already, or is not what it was when it was read: nothing was written."""

    code = "conflict"


class OutputHeldError(BatchdetError):
    """Another run holds the output, or this one no longer does; the message names the holder."""

    exit_code = 75


class DecodeError(BatchdetError):
    """The bytes of one image are not a picture this program reads.

    Attributes:
        code: stable word for the failed row, e.g. `truncated`.
        reason: one line for people.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[str, str]]:
        return type(self), (self.code, self.reason)


class OutOfMemoryError(BatchdetError):
    """The device has no memory for this batch."""


class RunError(BatchdetError):
    """The run did not end complete; what is committed stays committed."""


class OpenShardsError(RunError):
    """Some shards of the run have no commit marker."""


class FailureRateError(RunError):
    """More images failed than `limits.max_failure_rate` allows."""


class InterruptedRunError(RunError):
    """Ctrl-C or SIGTERM ended the run."""


class DivergedError(RunError):
    """A loss or a gradient of a training is no longer a finite number; names the images of the batch."""


class GateError(BatchdetError):
    """A model is not promoted: it measures worse than the live one."""

    exit_code = 3


class DriftError(BatchdetError):
    """The pseudo-labels have far more or fewer boxes than gold labels do."""

    exit_code = 3


class AlarmError(BatchdetError):
    """What changed between two runs is past a threshold that was asked for."""

    exit_code = 3


class AuditError(BatchdetError):
    """The coverage receipt does not add up."""

    exit_code = 3


class NightError(BatchdetError):
    """A night did not go well; its summary is written and told.

    Attributes:
        exit_code: of the error that ended it.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
