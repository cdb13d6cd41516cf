"""Outputs with a past, in memory: nights of made images, deleted ones among them, and what the views must answer."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.config import PolicyConfig
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.ledger import Ledger, shard_file
from batchdet.storage.schema import DETECTIONS, DETECTIONS_ENCODING, IMAGES, IMAGES_ENCODING, encode_table
from tests.analysis.outputs import DEFAULT_POLICY, Image, close, commit, open_run

NEW_EACH_TIME = ("run_id", "shard_id")
"""Columns that say where a row lies, not what was found."""

OTHER = PolicyConfig(score_threshold=0.55)
"""The policy of the last night of `play_past`."""


class Killed(BaseException):
    """The process is gone."""


@dataclass(frozen=True)
class Fused(Store):
    """A store whose process dies right before its next change once `left` changes are done."""

    left: list[int] = field(default_factory=lambda: [0], compare=False)

    def write_bytes(self, name: str, data: bytes) -> None:
        self._burn()
        super().write_bytes(name, data)

    def delete(self, name: str) -> None:
        self._burn()
        super().delete(name)

    def _burn(self) -> None:
        if self.left[0] == 0:
            raise Killed
        self.left[0] -= 1


def fused(store: Store, changes: int) -> Fused:
    """The same store, good for so many changes."""
    return Fused(store.uri, store.protocol, store.root, store.options, left=[changes])


def fresh_output() -> Store:
    """An empty output in memory."""
    fsspec.filesystem("memory").store.clear()
    return open_store("memory://history/out", {})


def snapshot() -> dict[str, bytes]:
    """Everything in memory."""
    fs = fsspec.filesystem("memory")
    return {path: fs.cat_file(path) for path in list(fs.store)}


def restore(files: Mapping[str, bytes]) -> None:
    """Everything as it was."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for path, data in files.items():
        fs.pipe_file(path, data)


def night(
    output: Store, number: int, images: Mapping[str, Image], *, shard: int = 2, policy: PolicyConfig = DEFAULT_POLICY
) -> None:
    """A complete run over these images."""
    plan = open_run(output, number, dict.fromkeys(images, f"night {number}"), shard, policy)
    commit(output, plan, images)
    close(output, plan)


def deleting_night(output: Store, number: int, uris: list[str]) -> None:
    """A complete run whose rows say that these images are gone."""
    plan = open_run(output, number, dict.fromkeys(uris, f"night {number}"))
    commit(output, plan, {})
    nulls = ("num_detections", "num_candidates", "hit_detection_cap", "content_digest", "decoder", "width", "height")
    for shard_id in range(plan.num_shards):
        name = shard_file("images", plan.run_id, shard_id)
        rows = pq.read_table(io.BytesIO(output.read_bytes(name))).to_pylist()
        gone = [row | {"status": "deleted"} | dict.fromkeys(nulls) for row in rows]
        table = pa.Table.from_pylist(gone, schema=IMAGES)
        output.write_bytes(name, encode_table(table, IMAGES_ENCODING, plan.header.stamp))
        none = encode_table(DETECTIONS.empty_table(), DETECTIONS_ENCODING, plan.header.stamp)
        output.write_bytes(shard_file("detections", plan.run_id, shard_id), none)
    close(output, plan)


def play_past(output: Store) -> None:
    """Four nights, one that deletes, one of another policy; `b` was deleted, `a` changed, `x` fails."""
    night(output, 1, {f"s3://p/{name}": Image(2, 1) for name in "abcdefg"} | {"s3://p/x": Image(failure="truncated")})
    night(output, 2, {"s3://p/a": Image(1, 0), "s3://p/ä": Image(3, 3), "s3://p/h": Image()})
    deleting_night(output, 3, ["s3://p/b"])
    night(output, 4, {"s3://p/c": Image(1, 1), "s3://p/i": Image(2, 2), "s3://p/j": Image(1)}, policy=OTHER)


def rows_of(output: Store, table: str, run_id: str) -> list[dict[str, Any]]:
    """Every row of a run."""
    return [
        row
        for name in output.list(f"{table}/run_id={run_id}")
        for row in pq.read_table(io.BytesIO(output.read_bytes(name))).to_pylist()
    ]


def current(output: Store) -> tuple[list[Any], list[Any]]:
    """What the views must answer, one row at a time: current images and their candidates, without where they lie."""
    latest: dict[str, tuple[str, dict[str, Any]]] = {}
    candidates: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in reversed(Ledger(output).complete_runs()):
        for row in rows_of(output, "images", run.run_id):
            latest[row["image_uri"]] = (run.run_id, row)
        for row in rows_of(output, "detections", run.run_id):
            candidates.setdefault((run.run_id, row["image_uri"]), []).append(row)
    shown = [(uri, run_id, row) for uri, (run_id, row) in sorted(latest.items()) if row["status"] != "deleted"]
    images = [plain(row) for _, _, row in shown]
    return images, [plain(row) for uri, run_id, _ in shown for row in candidates.get((run_id, uri), [])]


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without where it lies."""
    return {name: value for name, value in row.items() if name not in NEW_EACH_TIME}
