"""Which files of an output folder are batchdet's. Knows their names, not what is in them."""

import re

from batchdet.storage.delta import LOG
from batchdet.storage.filesystem import PROBE_NAME
from batchdet.storage.iceberg import FOLDER
from batchdet.storage.lease import LEASE
from batchdet.storage.plan import PLANS, RUN_ID

PROFILES = "_profiles"
"""Folder of the time lines of runs that were profiled."""

REMOVED = "_removed"
"""Folder of notes on runs that were removed and whose files are still to be deleted."""

NIGHTS = "nights"
"""Folder of what each night left."""

_RUN_ID = RUN_ID.pattern
_SCRATCH = r"\.[0-9a-f]{32}\.tmp"
_KEPT = re.compile(
    rf"runs/({_RUN_ID}\.parquet|{_SCRATCH})"
    rf"|(images|detections)/run_id={_RUN_ID}/(shard-\d{{5,}}\.parquet|{_SCRATCH})"
    rf"|{PLANS}/{_RUN_ID}/(plan\.json|backend\.txt|manifest-\d{{5,}}\.parquet|{_SCRATCH})"
    rf"|{REMOVED}/({_RUN_ID}\.json|{_SCRATCH})"
    rf"|{PROFILES}/{_RUN_ID}/(shard-\d{{5,}}\.json|trace\.json|summary\.txt|{_SCRATCH})"
    rf"|{NIGHTS}/[^/]+/(changes/)?([a-z_]+\.json|(images|changes)-\d{{5}}\.parquet|{_SCRATCH})"
    rf"|(images|detections|runs)/{LOG}/.+|{FOLDER}/(catalog\.db|(images|detections|runs)/metadata/.+)"
    rf"|{re.escape(LEASE)}|{re.escape(PROBE_NAME)}|{_SCRATCH}"
)


def is_kept(name: str) -> bool:
    """Whether batchdet writes such a file.

    Args:
        name: relative to the output folder.
    """
    return _KEPT.fullmatch(name) is not None
