"""Registers files in Iceberg tables of a catalog. Knows no runs beyond a column of that name."""

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from batchdet.errors import ConfigError
from batchdet.storage.filesystem import Store, mapped_errors
from batchdet.storage.objects import s3_access
from batchdet.storage.published import RUN_COLUMN, Publication, WantedTable, run_of, runs_of

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table, Transaction

FOLDER = "_iceberg"
"""Folder of the tables' metadata inside the output, unless a job names another."""

_OWNER = "batchdet.output"
_NAME_MAPPING = "schema.name-mapping.default"
_PARTITION = 3
_READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class IcebergPlace:
    """Where the tables are.

    Attributes:
        catalog_name: as pyiceberg's own configuration has it.
        properties: of the catalog, over that configuration.
        namespace: of the tables.
        uri: folder of the metadata.
    """

    catalog_name: str
    properties: Mapping[str, str] = field(repr=False)
    namespace: str
    uri: str


def require_iceberg() -> None:
    """Know that Iceberg tables can be written.

    Raises:
        ConfigError: pyiceberg is not installed.
    """
    if find_spec("pyiceberg") is None:
        raise ConfigError('publish.format: iceberg needs pyiceberg; pip install "batchdet[iceberg]"')


def publish_iceberg(output: Store, wanted: WantedTable, place: IcebergPlace) -> Publication:
    """Make the Iceberg table `<namespace>.<name>` hold exactly these files, in one transaction.

    Raises:
        ConfigError: pyiceberg or a part of it is not installed, the catalog is not described, or the table is another
            output's.
        StorageError: a file, the metadata or the catalog cannot be read or written; the table is as it was.
    """
    require_iceberg()
    from pyiceberg.catalog import load_catalog

    # It warns of every column that a file encodes as a dictionary, twice a file.
    logging.getLogger("pyiceberg.io.pyarrow").setLevel(logging.ERROR)
    with mapped_errors(f"{place.uri}/{wanted.name}"):
        catalog = load_catalog(place.catalog_name, **{**_file_access(output), **place.properties})
        return _update(output, _table(catalog, output, wanted, place), wanted)


def local_catalog(output: Store) -> dict[str, str]:
    """Properties of a catalog in a file of the output, on a disk.

    Raises:
        StorageError: its folder cannot be made.
    """
    folder = Path(output.path(FOLDER))
    with mapped_errors(output.child_uri(FOLDER)):
        folder.mkdir(parents=True, exist_ok=True)
    return {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db"}


def _table(catalog: "Catalog", output: Store, wanted: WantedTable, place: IcebergPlace) -> "Table":
    catalog.create_namespace_if_not_exists(place.namespace)
    table = catalog.create_table_if_not_exists(
        f"{place.namespace}.{wanted.name}",
        schema=wanted.columns,
        location=f"{place.uri}/{wanted.name}",
        properties={_OWNER: output.uri, "write.parquet.compression-codec": "zstd"},
    )
    owner = table.properties.get(_OWNER)
    if owner != output.uri:
        raise ConfigError(
            f"publish.namespace: table {place.namespace}.{wanted.name} is of {owner or 'something else'}, not of "
            f"{output.uri}; give this output a namespace of its own"
        )
    return table


def _update(output: Store, table: "Table", wanted: WantedTable) -> Publication:
    registered = _registered(table)
    names = {output.child_uri(name): name for name in wanted.files}
    new = sorted(names.keys() - registered.keys())
    gone = sorted(registered.keys() - names.keys())
    if new or gone or table.current_snapshot() is None:
        with table.transaction() as transaction:
            _prepare(transaction, table, wanted)
            properties = {
                "batchdet.runs-added": ",".join(runs_of(new)),
                "batchdet.runs-removed": ",".join(runs_of(gone)),
            }
            with transaction.update_snapshot(snapshot_properties=properties).overwrite() as snapshot:
                for file in _data_files(table, transaction, wanted, new):
                    snapshot.append_data_file(file)
                for uri in gone:
                    snapshot.delete_data_file(registered[uri])
    current = table.current_snapshot()
    return Publication(wanted.name, str(current.snapshot_id if current else ""), len(new), len(gone))


def _registered(table: "Table") -> dict[str, "DataFile"]:
    """Files by URI, from the manifests: a scan leaves out files without rows."""
    snapshot = table.current_snapshot()
    manifests = snapshot.manifests(table.io) if snapshot else []
    entries = [entry for manifest in manifests for entry in manifest.fetch_manifest_entry(table.io)]
    return {entry.data_file.file_path: entry.data_file for entry in entries}


def _prepare(transaction: "Transaction", table: "Table", wanted: WantedTable) -> None:
    """Partition by run, find columns by name (files have no ids), and have the columns that newer files have."""
    if table.metadata.name_mapping() is None:
        transaction.set_properties({_NAME_MAPPING: table.schema().name_mapping.model_dump_json()})
    with transaction.update_schema() as columns:
        columns.union_by_name(wanted.columns)
    if wanted.is_partitioned and table.spec().is_unpartitioned():
        with transaction.update_spec() as spec:
            spec.add_identity(RUN_COLUMN)


def _data_files(
    table: "Table", transaction: "Transaction", wanted: WantedTable, uris: Collection[str]
) -> list["DataFile"]:
    from pyiceberg.io.pyarrow import parquet_file_to_data_file
    from pyiceberg.typedef import Record

    with ThreadPoolExecutor(_READ_THREADS) as threads:
        files = list(threads.map(partial(parquet_file_to_data_file, table.io, transaction.table_metadata), uris))
    if wanted.is_partitioned:
        for file in files:
            # The value is in the path alone, so nothing in the file told it.
            file[_PARTITION] = Record(run_of(file.file_path))
    return files


def _file_access(output: Store) -> dict[str, str]:
    """The output as pyiceberg's files reach it; never stored with a table."""
    if output.protocol != "s3":
        return {}
    access = s3_access(output.fs, output.path(""))
    found = {
        # Arrow's own client sends what Ceph's gateway refuses: parts without a length
        "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
        "s3.endpoint": access.endpoint,
        "s3.region": access.region,
        "s3.force-virtual-addressing": str(access.is_virtual_host).lower(),
        "s3.connect-timeout": f"{access.connect_s:g}",
        "s3.request-timeout": f"{access.read_s:g}",
    }
    if access.key is None:
        return found | {"s3.anonymous": "true"}
    keys = {"s3.access-key-id": access.key, "s3.secret-access-key": access.secret, "s3.session-token": access.token}
    return found | {name: value for name, value in keys.items() if value}
