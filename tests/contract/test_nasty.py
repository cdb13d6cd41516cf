"""Law 6: no image can stop a run, and too many failures end it. Odd files go through the whole program."""

import csv
from pathlib import Path
from typing import Any

import pytest

from batchdet.cli.main import main
from batchdet.demo.shipped import shipped_model
from tests.contract.outputs import num_committed, rows_of

FAILURES = {
    "OSError": {"truncated", "corrupt"},
    "ValueError": {"corrupt"},
    "DecompressionBombError": {"too_many_pixels"},
    "UnidentifiedImageError": {"not_an_image", "empty", "truncated", "corrupt"},
}
"""The oracle's exception to the codes that may stand for it."""


def label(source: Path, output: Path, *settings: str) -> int:
    flags = ["--source", str(source), "--output", str(output), "--model", str(shipped_model()), "--ray", "off"]
    # Manifest or not, every file counts: endings are as odd as the files.
    fixed = ["--set=plan.images_per_shard=16", "--set=reading.block_images=5"]
    return main(["label", *flags, *fixed, *(f"--set={text}" for text in settings)])


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_every_odd_file_ends_as_the_oracle_says(decode: str, data_folder: Path, tmp_path: Path) -> None:
    nasty = data_folder / "nasty"
    with (nasty / "expected.csv").open(encoding="utf-8", newline="") as lines:
        oracle = {row["file"]: row for row in csv.DictReader(lines)}
    manifest = tmp_path / "nasty.txt"
    manifest.write_text("".join(f"{(nasty / 'files' / name).as_posix()}\n" for name in oracle))
    assert label(manifest, tmp_path / "labels", "limits.max_failure_rate=1", f"reading.decode={decode}") == 0
    assert main(["audit", str(tmp_path / "labels")]) == 0
    rows = {row["image_uri"].rpartition("/")[2]: row for row in rows_of(tmp_path / "labels", "images").to_pylist()}
    assert rows.keys() == oracle.keys()
    wrong = {name: row for name, row in rows.items() if not as_expected(row, oracle[name])}
    assert not wrong
    reduced = {name for name, row in rows.items() if (row["decoder"] or "").endswith("/fast")}
    assert bool(reduced) == (decode == "fast")


def as_expected(row: dict[str, Any], expected: dict[str, str]) -> bool:
    if expected["expect"] == "reject":
        codes = FAILURES[expected["error"]]
        return row["status"] == "failed" and row["failure_stage"] == "decode" and row["failure_code"] in codes
    return row["status"] == "labelled" and f"{row['width']}x{row['height']}" == expected["expected_size"]


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_every_broken_file_is_a_failed_row(decode: str, pictures: Path, tmp_path: Path) -> None:
    """The made set: what is wrong, the code it gets, and no detection of it."""
    assert label(pictures, tmp_path / "labels", "limits.max_failure_rate=1", f"reading.decode={decode}") == 0
    rows = {row["image_uri"].rpartition("/")[2]: row for row in rows_of(tmp_path / "labels", "images").to_pylist()}
    codes = {name: row["failure_code"] for name, row in rows.items() if row["status"] == "failed"}
    assert codes == {
        "broken-cut-short.jpg": "truncated",
        "broken-empty.jpg": "empty",
        "broken-flipped-bytes.png": "corrupt",
        "broken-header-only.jpg": "truncated",
        "broken-noise.jpg": "not_an_image",
        "broken-web-page.jpg": "not_an_image",
    }
    for name in codes:
        row = rows[name]
        assert row["failure_stage"] == "decode"
        assert row["failure_reason"]
        assert row["num_detections"] is None
    found = rows_of(tmp_path / "labels", "detections")["image_uri"].to_pylist()
    assert not [uri for uri in found if uri.rpartition("/")[2] in codes]


@pytest.mark.parametrize("shards", ["one", "many"])
def test_a_run_over_its_failure_rate_stays_open_until_accepted(
    shards: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 and open; the same command stops at once, however the failures lie; a raised limit labels none twice."""
    output = tmp_path / "labels"
    cut = "plan.images_per_shard=100" if shards == "one" else "plan.images_per_shard=3"
    assert label(pictures, output, cut) == 1
    committed = num_committed(output)
    begun = {path: path.stat().st_mtime_ns for path in output.glob("images/*/*.parquet")}
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: ")
    assert "limits.max_failure_rate" in said.err
    assert "raise the limit" in said.err
    assert not list(output.glob("runs/*"))
    assert label(pictures, output, cut) == 1
    assert num_committed(output) == committed, "a run that cannot be mended went on"
    assert label(pictures, output, cut, "limits.max_failure_rate=0.5") == 0
    assert {path: path.stat().st_mtime_ns for path in begun} == begun, "a committed shard was labelled again"
    assert main(["audit", str(output)]) == 0
