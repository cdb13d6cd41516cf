"""Plans are written once, `plan.json` last, and read back as they were."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.config import PlanConfig
from batchdet.errors import NotFoundError, OutputError, SchemaVersionError, SourceError
from batchdet.records import ImageRef, InputSpec
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.plan import RUN_ID, RunPlan, new_run_id, read_plan, read_shard, run_time
from batchdet.storage.planning import count_plan, make_plan
from batchdet.storage.schema import KNOWN
from tests.benchmarks.plan_memory import made_known, made_listing
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket
from tests.storage.made import MODEL, NOON, header, listing, refs

RUN = header().run_id


def plan_of(output: Store, images: int, per_shard: int) -> RunPlan:
    return make_plan(output, header(), listing(reversed(refs(images))), [], PlanConfig(images_per_shard=per_shard))


@pytest.fixture(params=["local", "memory", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "out put #1"), {})
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return open_store("memory://plans/out", {})
    return open_store(f"{request.getfixturevalue('moto_bucket').uri}/out", {})


def test_written_and_read_back(output: Store) -> None:
    plan = plan_of(output, images=10, per_shard=4)
    assert read_plan(output, RUN) == plan
    assert plan.num_shards == 3
    shards = [read_shard(output, plan, shard_id) for shard_id in range(3)]
    assert [len(shard.images) for shard in shards] == [4, 4, 2]
    assert [image for shard in shards for image in shard.images] == list(refs(10))
    assert {(shard.run_id, shard.shard_id) for shard in shards} == {(RUN, 0), (RUN, 1), (RUN, 2)}
    assert plan.images_to_label([0, 2]) == 6


def test_every_field_comes_back(tmp_path: Path) -> None:
    spec = InputSpec(None, 800, 1333, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    full = header(
        previous_run_id="20260101T000000Z-00000000",
        model=replace(MODEL, input_spec=spec, categories=("__background__", "čat", "d,og")),
        started_at=datetime(2026, 5, 17, 12, 0, 0, 123456, tzinfo=UTC),
        policy='{"score_threshold":0.5}',
        source="s3://b/a \"quoted\" 'ünïcödé' #%/",
    )
    output = open_store(str(tmp_path), {})
    made = make_plan(output, full, listing(refs(1)), [], PlanConfig())
    assert read_plan(output, RUN) == made
    assert made.header == full


def test_nothing_to_do_is_a_plan(output: Store) -> None:
    known = [
        pa.RecordBatch.from_arrays(
            [
                *batch.columns,
                pa.array(["labelled"] * 3),
                pa.nulls(3, pa.string()),
                pa.nulls(3, pa.int32()),
                pa.array(["r"] * 3),
            ],
            schema=KNOWN,
        )
        for batch in listing(refs(3))
    ]
    plan = make_plan(output, header(), listing(refs(3)), known, PlanConfig())
    assert (plan.num_shards, plan.counts.num_unchanged) == (0, 3)
    assert read_plan(output, RUN) == plan
    assert list(output.list(f"_plans/{RUN}")) == [f"_plans/{RUN}/plan.json"]
    assert plan.images_to_label([]) == 0
    with pytest.raises(ValueError, match="asked for 0"):
        read_shard(output, plan, 0)


def test_same_listing_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, batch in zip(folders, (3, 1000), strict=True):
        images = listing(refs(500) if batch == 3 else reversed(refs(500)), batch)
        make_plan(open_store(str(folder), {}), header(), images, [], PlanConfig(images_per_shard=64))
    first, second = ({path.name: path.read_bytes() for path in folder.rglob("*.*")} for folder in folders)
    assert first == second


def test_one_row_group_a_shard_and_bounded_files(tmp_path: Path) -> None:
    config = PlanConfig(images_per_shard=100_000)
    plan = make_plan(open_store(str(tmp_path), {}), header(), made_listing(270_000), [], config)
    files = sorted((tmp_path / "_plans" / RUN).glob("manifest-*.parquet"))
    assert [path.name for path in files] == [f"manifest-{n:05d}.parquet" for n in range(2)]
    groups = [pq.ParquetFile(path).metadata for path in files]
    sizes = [[part.row_group(n).num_rows for n in range(part.num_row_groups)] for part in groups]
    assert sizes == [[100_000, 100_000], [70_000]]
    assert pq.read_metadata(files[0]).metadata[b"batchdet.run_id"] == RUN.encode()
    last = read_shard(open_store(str(tmp_path), {}), plan, 2)
    uris = pq.read_table(files, columns=["image_uri"])["image_uri"].to_pylist()
    assert uris == sorted(set(uris), key=str.encode)
    assert [image.uri for image in last.images] == uris[200_000:]


def test_large_plan_counts_every_class() -> None:
    counts, num_known = count_plan(made_listing(200_000, changed_every=10), made_known(150_000), PlanConfig())
    assert (counts.num_listed, counts.num_new, counts.num_changed) == (200_000, 50_000, 15_000)
    assert (counts.num_failed_retry, counts.num_unchanged, num_known) == (3_000, 132_000, 150_000)
    kept, _ = count_plan(made_listing(1_000), made_known(1_000), PlanConfig(retry_failed=False))
    assert (kept.num_failed_retry, kept.num_unchanged) == (0, 1_000)


def test_a_shard_is_read_by_range(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    output = open_store(f"{faulty_bucket.uri}/out", {})
    plan = make_plan(output, header(), made_listing(20_000), [], PlanConfig(images_per_shard=200))
    name = f"out/_plans/{RUN}/manifest-00000.parquet"
    whole = len(faulty_bucket.get(name))
    faults.requests.clear()
    faults.add(Fault(name, "status", times=1, method="GET"))
    assert len(read_shard(output, plan, 57).images) == 200
    assert whole > 300_000
    assert faults.count(name, "GET") <= 5, "footer, row group, one failure"


def test_planner_that_dies_leaves_no_plan(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from listing(refs(3))
        raise SourceError("gone")

    output = open_store(str(tmp_path), {})
    with pytest.raises(SourceError, match="gone"):
        make_plan(output, header(), broken(), [], PlanConfig())
    with pytest.raises(NotFoundError):
        read_plan(output, RUN)


def test_plan_json_is_written_last(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    output = open_store(f"{faulty_bucket.uri}/out", {})
    plan_of(output, images=3, per_shard=1)
    written = [seen.key for seen in faults.requests if seen.method == "PUT"]
    assert [key.rsplit("/", 1)[-1] for key in written] == ["manifest-00000.parquet", "plan.json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"schema_version": 1}', '{"header": {}}'])
def test_damaged_plan(tmp_path: Path, damage: str) -> None:
    output = open_store(str(tmp_path), {})
    output.write_bytes(f"_plans/{RUN}/plan.json", damage.encode())
    with pytest.raises(OutputError, match=f"_plans/{RUN}/plan.json is damaged"):
        read_plan(output, RUN)


def test_another_schema_version(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    plan_of(output, 1, 1)
    path = tmp_path / "_plans" / RUN / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(SchemaVersionError, match="has schema version 2, this batchdet writes 1"):
        read_plan(output, RUN)


def test_images_without_facts(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    images = (ImageRef("s3://b/a.jpg"), ImageRef("s3://b/b \n#.jpg", None, 0, NOON))
    plan = make_plan(output, header(), listing(images), [], PlanConfig())
    assert read_shard(output, plan, 0).images == images


TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(timezone(timedelta(hours=5))))


@given(now=TIMES, earlier=st.lists(TIMES, max_size=4))
def test_run_ids_only_grow(now: datetime, earlier: list[datetime]) -> None:
    previous = [new_run_id(moment) for moment in earlier]
    made = new_run_id(now, previous)
    assert RUN_ID.fullmatch(made)
    assert all(made > run_id for run_id in previous)
    if all(run_time(run_id) < now.replace(microsecond=0) for run_id in previous):
        assert run_time(made) == now.replace(microsecond=0)
