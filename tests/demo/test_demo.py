"""A second demo leaves nothing of the first, and nobody loses a file to it."""

from pathlib import Path

import pytest

from batchdet.demo import demo
from batchdet.errors import OutputError
from batchdet.storage.filesystem import open_store
from tests.analysis.outputs import Image, open_run, whole_run


def test_only_the_labels_of_a_demo_go(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    demo.clear_labels(tmp_path)
    whole_run(open_store(str(labels), {}), 1, {"s3://b/a": Image(1)})
    demo.clear_labels(tmp_path)
    assert not labels.exists()
    whole_run(open_store(str(labels), {}), 1, {"s3://b/a": Image(1)})
    own = [labels / "notes.txt", labels / "runs" / "mine.parquet", labels / "images" / "cat.jpg"]
    for path in own:
        path.write_bytes(b"mine")
    demo.clear_labels(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(own)


def test_labels_of_another_job_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.require_own_labels(tmp_path)
    output = open_store(str(tmp_path / "labels"), {})
    whole_run(output, 1, {"s3://b/a": Image(1)})
    open_run(output, 2, {"s3://b/b": "e"})
    with pytest.raises(OutputError, match="its labels are of memory://source, not of a demo"):
        demo.require_own_labels(tmp_path)
    monkeypatch.setattr(demo, "BUCKET_SOURCE", "memory://source")
    demo.require_own_labels(tmp_path)
