"""The plan of a run: its header, its counts and its shards, written once and read back. Knows no engine, no cluster.

_plans/<run_id>/manifest-<00000>.parquet   one row group per shard
_plans/<run_id>/plan.json                  written last: from then on the run is open

Shards come in three parts, each sorted by image_uri: images whose bytes are new, images to label again, and images that
are gone. So a run that is stopped has done first what nobody has seen yet.
"""

import json
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from batchdet.errors import OutputError
from batchdet.records import ImageRef, InputSpec, ModelInfo, PlanCounts, Shard, Twin
from batchdet.storage.filesystem import Store
from batchdet.storage.parquet import opened, read_rows
from batchdet.storage.schema import FileStamp, check_version

PLANS = "_plans"
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
"""What a run_id looks like."""

_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """What a run is, fixed before its first image is read.

    Attributes:
        started_at: timezone-aware UTC.
        policy: canonical JSON.
        config: the job as JSON, without secrets.
        versions: JSON of library versions.
    """

    run_id: str
    source: str
    previous_run_id: str | None
    started_at: datetime
    model: ModelInfo
    policy: str
    policy_digest: str
    config: str
    versions: str

    @property
    def stamp(self) -> FileStamp:
        """Metadata of every file of the run."""
        return FileStamp(self.run_id, self.model.digest, self.policy_digest)

    @property
    def derived(self) -> dict[str, Any] | None:
        """How the run was made of committed rows; None for one that labels images."""
        return derivation_of(self.config)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """An open or closed run as planned.

    Attributes:
        counts: listed images by class.
        images_per_shard: of every shard but the last of a part.
        shards_per_file: row groups of every manifest file but the last.
    """

    header: PlanHeader
    counts: PlanCounts
    images_per_shard: int
    shards_per_file: int

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.header.run_id

    @property
    def parts(self) -> tuple[range, range, range]:
        """Shards of new bytes, of images to label again, and of images that are gone."""
        begin, found = 0, []
        for images in self._part_images:
            end = begin - (-images // self.images_per_shard)
            found.append(range(begin, end))
            begin = end
        fresh, stale, gone = found
        return fresh, stale, gone

    @property
    def num_shards(self) -> int:
        """Shards are numbered from 0; none when there is nothing to do."""
        return self.parts[-1].stop

    def images_to_label(self, shard_ids: Collection[int]) -> int:
        """Images to label of these shards together."""
        found = 0
        for shards, images in list(zip(self.parts, self._part_images, strict=True))[:2]:
            inside = sum(shard_id in shards for shard_id in shard_ids)
            found += inside * self.images_per_shard
            if shards and shards[-1] in shard_ids:
                found -= len(shards) * self.images_per_shard - images
        return found

    @property
    def _part_images(self) -> tuple[int, int, int]:
        counts = self.counts
        return counts.num_planned - counts.num_stale, counts.num_stale, counts.num_deleted


def derivation_of(config: str) -> dict[str, Any] | None:
    """What the config of a run says of how it was made of committed rows; None for one that labelled images.

    Args:
        config: JSON, of a plan's header or of a run's row.
    """
    found: dict[str, Any] | None = json.loads(config).get("derived")
    return found


def new_run_id(now: datetime, previous: Iterable[str] = ()) -> str:
    """A run id `YYYYMMDDTHHMMSSZ-<8 hex>`, greater than every previous one even if their clock ran ahead."""
    second = now.astimezone(UTC).replace(microsecond=0)
    for run_id in previous:
        second = max(second, run_time(run_id) + timedelta(seconds=1))
    return f"{second.strftime(_TIME)}-{secrets.token_hex(4)}"


def run_time(run_id: str) -> datetime:
    """The second a run id names, UTC."""
    return datetime.strptime(run_id[:16], _TIME).replace(tzinfo=UTC)


def read_plan(output: Store, run_id: str) -> RunPlan:
    """The plan of a run.

    Raises:
        NotFoundError: there is no such plan.
        SchemaVersionError: another schema version wrote it.
        OutputError: plan.json is damaged.
    """
    name = plan_name(run_id)
    data = output.read_bytes(name)
    uri = output.child_uri(name)
    try:
        tree = json.loads(data)
        check_version(str(tree.pop("schema_version")), uri)
        return _plan_from_json(tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{uri} is damaged ({error}); remove {output.child_uri(f'{PLANS}/{run_id}')}") from error


def read_shard(output: Store, plan: RunPlan, shard_id: int) -> Shard:
    """One shard of the plan: one row group, read by range.

    Raises:
        ValueError: the plan has no such shard.
        NotFoundError, StorageError: its manifest cannot be read.
    """
    if not 0 <= shard_id < plan.num_shards:
        raise ValueError(f"{plan.run_id} has shards 0..{plan.num_shards - 1}, asked for {shard_id}")
    name = manifest_name(plan.run_id, shard_id // plan.shards_per_file)
    with opened(output.open_input(name)) as file:
        table = read_rows(file, row_group=shard_id % plan.shards_per_file)
    return Shard(plan.run_id, shard_id, tuple(_ref_from_row(row) for row in table.to_pylist()))


def plan_name(run_id: str) -> str:
    """The file that marks a run open."""
    return f"{PLANS}/{run_id}/plan.json"


def manifest_name(run_id: str, number: int) -> str:
    """One file of the sorted images."""
    return f"{PLANS}/{run_id}/manifest-{number:05d}.parquet"


def _ref_from_row(row: dict[str, Any]) -> ImageRef:
    return ImageRef(
        uri=row["image_uri"],
        etag=row["etag"],
        size_bytes=row["size_bytes"],
        last_modified=row["last_modified"],
        failed_runs=row["failed_runs"] or 0,
        twins=tuple(Twin(**twin) for twin in row["twins"] or ()),
    )


def _plan_from_json(tree: dict[str, Any]) -> RunPlan:
    header = tree.pop("header")
    return RunPlan(
        header=PlanHeader(
            **header
            | {"started_at": datetime.fromisoformat(header["started_at"]), "model": _model_from_json(header["model"])}
        ),
        counts=PlanCounts(**tree.pop("counts")),
        **tree,
    )


def _model_from_json(tree: dict[str, Any]) -> ModelInfo:
    spec = tree["input_spec"]
    arrays = {name: tuple(spec[name]) for name in ("mean", "std")}
    fixed_size = None if spec["fixed_size"] is None else tuple(spec["fixed_size"])
    return ModelInfo(
        **tree
        | {
            "categories": tuple(tree["categories"]),
            "input_spec": InputSpec(**spec | arrays | {"fixed_size": fixed_size}),
        }
    )
