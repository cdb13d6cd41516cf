"""Complete runs as tables with transactions and time travel. Knows which files, not how a format registers them."""

from collections.abc import Iterator
from functools import partial

from batchdet.analysis.committed import list_committed
from batchdet.errors import ConfigError, StorageError
from batchdet.outlets import PublishConfig
from batchdet.storage.delta import publish_delta, require_delta
from batchdet.storage.filesystem import Store
from batchdet.storage.iceberg import FOLDER, IcebergPlace, local_catalog, publish_iceberg, require_iceberg
from batchdet.storage.published import Publication, WantedTable
from batchdet.storage.schema import DETECTIONS, IMAGES, RUNS

ORDER = (("detections", DETECTIONS), ("images", IMAGES), ("runs", RUNS))
"""A transaction is of one table: who sees a run in `images` sees its detections, who sees it in `runs` sees both."""


def publish_runs(output: Store, settings: PublishConfig) -> list[Publication]:
    """Make the tables hold the files of every complete run and no others; without need of it, nothing is written.

    What an earlier publication missed is caught up with, and what a compaction took out of sight is taken out in the
    transaction that puts in what replaces it.

    Raises:
        ConfigError: the format is not installed, or cannot be published there.
        OutputError: no run has ended.
        StorageError: something could not be read or written; tables before it are published, the same call goes on.
    """
    publish = (
        partial(publish_delta, output)
        if settings.format == "delta"
        else partial(publish_iceberg, output, place=_iceberg_place(output, settings))
    )
    return [publish(table) for table in wanted_tables(output)]


def require_publishable(output: Store, settings: PublishConfig) -> None:
    """Say before a long run what publication could never do.

    Raises:
        ConfigError: the format is not installed, or cannot be published there.
        StorageError: the output cannot be reached.
    """
    if settings.format == "delta":
        require_delta(output)
    else:
        require_iceberg()
        _iceberg_place(output, settings)


def publish_complete(output: Store, settings: PublishConfig, run_id: str) -> list[Publication]:
    """`publish_runs` after a run; a failure says that the run itself is complete.

    Raises:
        StorageError: something could not be read or written.
    """
    try:
        return publish_runs(output, settings)
    except StorageError as error:
        raise type(error)(
            error.uri,
            f"{error.reason}; run {run_id} is complete, and published by the next run or by `batchdet publish`",
        ) from error


def wanted_tables(output: Store) -> Iterator[WantedTable]:
    """The tables, in the order in which they are published.

    Raises:
        OutputError: no run has ended.
        StorageError: the output cannot be listed.
    """
    sizes = list_committed(output).sizes
    for name, schema in ORDER:
        files = {file: size for file, size in sizes.items() if file.startswith(f"{name}/")}
        yield WantedTable(name, schema, name != "runs", files)


def told(publications: list[Publication]) -> str:
    """One line for people."""
    parts = [f"{each.table} {each.version} (+{each.files_added} −{each.files_removed} files)" for each in publications]
    return f"published: {', '.join(parts)}"


def _iceberg_place(output: Store, settings: PublishConfig) -> IcebergPlace:
    properties = settings.catalog
    if not properties:
        if not output.is_local:
            raise ConfigError(
                "publish.catalog: name Iceberg's catalog, e.g. {type: rest, uri: https://…} or {type: glue}"
            )
        properties = local_catalog(output)
    uri = (settings.uri or output.child_uri(FOLDER)).rstrip("/")
    return IcebergPlace(settings.catalog_name, properties, settings.namespace, uri)
