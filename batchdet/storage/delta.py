"""Registers files in Delta Lake tables whose logs lie beside them. Knows no runs beyond a column of that name."""

import json
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.errors import ConfigError
from batchdet.storage.filesystem import Store, mapped_errors
from batchdet.storage.objects import s3_access
from batchdet.storage.published import RUN_COLUMN, Publication, WantedTable, run_of, runs_of

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction

LOG = "_delta_log"
"""Folder of a table's log, inside the table's folder."""

_READ_THREADS = 8
_KEEP = {"delta.deletedFileRetentionDuration": "interval 5200 weeks"}
"""VACUUM deletes what no version holds, and would take the shards of open runs for that: it is to find nothing."""


def require_delta(output: Store) -> None:
    """Know that Delta tables can be written there.

    Raises:
        ConfigError: deltalake is not installed, or does not reach the output.
    """
    if find_spec("deltalake") is None:
        raise ConfigError('publish.format: delta needs deltalake; pip install "batchdet[delta]"')
    if output.protocol not in ("file", "s3"):
        raise ConfigError(f"publish.format: delta is published on a disk and on S3, not on {output.protocol}://")


def publish_delta(output: Store, wanted: WantedTable) -> Publication:
    """Make the Delta table at `OUTPUT/<name>` hold exactly these files, in one transaction.

    Raises:
        ConfigError: deltalake is not installed, or does not reach the output.
        StorageError: a file or the log cannot be read or written; the table is as it was.
    """
    require_delta(output)
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    uri, options = output.child_uri(wanted.name), _options(output)
    if output.is_local:
        uri = output.path(wanted.name)
    with mapped_errors(output.child_uri(wanted.name)):
        try:
            # not is_deltatable: it keeps every other thread waiting, the lease's among them
            table = DeltaTable(uri, storage_options=options)
        except TableNotFoundError:
            _create(uri, options, wanted, _added(output, wanted, wanted.files))
            return Publication(wanted.name, "0", len(wanted.files), 0)
        return _update(output, table, wanted)


def _update(output: Store, table: "DeltaTable", wanted: WantedTable) -> Publication:
    from deltalake.transaction import RemoveAction

    registered = {f"{wanted.name}/{action['path']}": action for action in _registered(table)}
    new = sorted(wanted.files.keys() - registered.keys())
    gone = sorted(registered.keys() - wanted.files.keys())
    if new or gone:
        _widen(table, wanted.columns)
        now = int(time.time() * 1000)
        removed = [
            RemoveAction(
                registered[name]["path"],
                data_change=True,
                deletion_timestamp=now,
                size=registered[name]["size_bytes"],
                partition_values=_partition(wanted, name),
            )
            for name in gone
        ]
        table.create_write_transaction(
            [*_added(output, wanted, new), *removed],
            "append",
            table.schema(),
            _partitioned_by(wanted),
            commit_properties=_properties(new, gone),
        )
        table.update_incremental()
    return Publication(wanted.name, str(table.version()), len(new), len(gone))


def _create(uri: str, options: dict[str, str] | None, wanted: WantedTable, added: list["AddAction"]) -> None:
    from deltalake import Schema
    from deltalake.transaction import create_table_with_add_actions

    create_table_with_add_actions(
        uri,
        Schema.from_arrow(wanted.columns),
        added,
        partition_by=_partitioned_by(wanted),
        name=wanted.name,
        description=f"{wanted.name} of complete batchdet runs",
        configuration=_KEEP,
        storage_options=options,
        commit_properties=_properties(list(wanted.files), []),
    )


def _registered(table: "DeltaTable") -> list[dict[str, Any]]:
    return pa.table(table.get_add_actions(flatten=True)).select(["path", "size_bytes"]).to_pylist()


def _widen(table: "DeltaTable", columns: pa.Schema) -> None:
    """Add the columns that newer files have: rows of older files are null there, as they were."""
    from deltalake import Schema

    known = {field.name for field in table.schema().fields}
    missing = [field for field in Schema.from_arrow(columns).fields if field.name not in known]
    if missing:
        table.alter.add_columns(missing)


def _added(output: Store, wanted: WantedTable, names: Collection[str]) -> list["AddAction"]:
    from deltalake.transaction import AddAction

    now = int(time.time() * 1000)
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        stats = threads.map(lambda name: _statistics(output, name), names)
        return [
            AddAction(
                path=name.removeprefix(f"{wanted.name}/"),
                size=wanted.files[name],
                partition_values=_partition(wanted, name),
                modification_time=now,
                data_change=True,
                stats=stat,
            )
            for name, stat in zip(names, stats, strict=True)
        ]


def _statistics(output: Store, name: str) -> str:
    """Rows of a file and the range of its images, from its footer: what readers prune by."""
    with mapped_errors(output.child_uri(name)), output.open_input(name) as stream:
        footer = pq.read_metadata(stream)
    found: dict[str, Any] = {"numRecords": footer.num_rows}
    index = footer.schema.to_arrow_schema().get_field_index("image_uri")
    ranges = [_range(footer.row_group(number), index) for number in range(footer.num_row_groups) if index >= 0]
    known = [each for each in ranges if each is not None]
    if known and len(known) == len(ranges):
        found["minValues"] = {"image_uri": min(low for low, _ in known)}
        found["maxValues"] = {"image_uri": max(high for _, high in known)}
    return json.dumps(found)


def _range(group: pq.RowGroupMetaData, index: int) -> tuple[str, str] | None:
    statistics = group.column(index).statistics
    return None if statistics is None or not statistics.has_min_max else (str(statistics.min), str(statistics.max))


def _partition(wanted: WantedTable, name: str) -> dict[str, str | None]:
    return {RUN_COLUMN: run_of(name)} if wanted.is_partitioned else {}


def _partitioned_by(wanted: WantedTable) -> list[str]:
    return [RUN_COLUMN] if wanted.is_partitioned else []


def _properties(new: Collection[str], gone: Collection[str]) -> Any:
    from deltalake import CommitProperties

    return CommitProperties(custom_metadata={"runs_added": runs_of(new), "runs_removed": runs_of(gone)})


def _options(output: Store) -> dict[str, str] | None:
    """The output as deltalake reaches it. Its log is written by conditional PUT, without a lock table."""
    if output.is_local:
        return None
    access = s3_access(output.fs, output.path(""))
    found = {
        "aws_endpoint": access.bucket_endpoint,
        "aws_virtual_hosted_style_request": str(access.is_virtual_host).lower(),
        "aws_region": access.region,
        "aws_allow_http": "true",
        "connect_timeout": f"{access.connect_s:g}s",
        "timeout": f"{output.patience.give_up_s:g}s",
        "aws_conditional_put": "etag",
    }
    if access.key is None:
        return found | {"aws_skip_signature": "true"}
    keys = {"aws_access_key_id": access.key, "aws_secret_access_key": access.secret, "aws_session_token": access.token}
    return found | {name: value for name, value in keys.items() if value}
