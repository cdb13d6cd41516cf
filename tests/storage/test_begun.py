"""The first labeller of a run says what computes its detections."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from batchdet.storage.begun import read_backend, settle_backend
from batchdet.storage.filesystem import open_store
from batchdet.storage.layout import is_kept
from tests.servers.s3 import Bucket

RUN_ID = "20260101T000000Z-00000000"


def test_the_first_backend_stays(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    assert read_backend(output, RUN_ID) is None
    assert settle_backend(output, RUN_ID, "openvino-1/fp32") == "openvino-1/fp32"
    assert settle_backend(output, RUN_ID, "torch-2/fp32") == "openvino-1/fp32"
    assert settle_backend(output, "20260101T000001Z-00000000", "torch-2/fp32") == "torch-2/fp32"
    assert read_backend(output, RUN_ID) == "openvino-1/fp32"
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(map(is_kept, files)), "an output inside a source is not listed as images"


def test_labellers_that_begin_at_once_agree(moto_bucket: Bucket) -> None:
    def settle(number: int) -> str:
        return settle_backend(open_store(f"{moto_bucket.uri}/labels", {}), RUN_ID, f"torch-{number}/fp32")

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(settle, range(8)))) == 1
