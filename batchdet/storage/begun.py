"""What a run was begun with that its plan could not know. Knows no engine and no shard."""

from batchdet.errors import ConflictError, NotFoundError
from batchdet.storage.exclusive import create_bytes
from batchdet.storage.filesystem import Store
from batchdet.storage.plan import PLANS


def read_backend(output: Store, run_id: str) -> str | None:
    """What computes the run's detections; None before its first labeller is there.

    Raises:
        AccessDeniedError, TransientStorageError, StorageError
    """
    try:
        return output.read_bytes(_backend_name(run_id)).decode()
    except NotFoundError:
        return None


def settle_backend(output: Store, run_id: str, backend: str) -> str:
    """What computes the run's detections: the first labeller's says it for all.

    Args:
        output: the output folder.
        run_id: of the run.
        backend: this labeller's.

    Raises:
        AccessDeniedError, TransientStorageError, StorageError
    """
    settled = read_backend(output, run_id)
    if settled is not None:
        return settled
    try:
        create_bytes(output, _backend_name(run_id), backend.encode())
    except ConflictError:
        return read_backend(output, run_id) or backend
    return backend


def _backend_name(run_id: str) -> str:
    return f"{PLANS}/{run_id}/backend.txt"
