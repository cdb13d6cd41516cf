"""Helpers of the contract suite: start `batchdet label` as a person would, watch its commits, read its rows."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

VOLATILE = ("labelled_at",)
"""Columns that say when, not what."""


def start_label(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """`batchdet label …` in a process of its own."""
    command = [sys.executable, "-m", "batchdet", "label", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def committed_shards(output: Path) -> int:
    """Commit markers in a local output."""
    return len(list(output.glob("images/run_id=*/shard-*.parquet")))


def rows_of(output: Path, table: str) -> pa.Table:
    """All rows of a table of a local output, sorted, without the columns that say when."""
    files = sorted(output.glob(f"{table}/run_id=*/shard-*.parquet"))
    read = pa.concat_tables(pq.read_table(path, partitioning=None) for path in files)
    keys = [("image_uri", "ascending")]
    if "detection_index" in read.column_names:
        keys.append(("detection_index", "ascending"))
    return read.drop_columns([name for name in VOLATILE if name in read.column_names]).sort_by(keys)


def descendants(process: subprocess.Popen[str], title: str) -> Iterator[psutil.Process]:
    """Living processes below `process` whose command line contains `title` (Ray names its workers so)."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for child in children:
        try:
            if title in " ".join(child.cmdline()):
                yield child
        except psutil.NoSuchProcess:
            continue
