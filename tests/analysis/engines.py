"""Engines that run the printed views: what they answer, and how many files they open for it."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pytest

from batchdet.analysis.relations import Dialect

_DATAFUSION_FILES = re.compile(r"files_ranges_pruned_statistics=\d+ total → (\d+) matched")


class Engine(Protocol):
    """An engine with the views of one output."""

    @property
    def dialect(self) -> Dialect:
        """The text it takes."""

    def define(self, statements: Sequence[str]) -> None:
        """Run the statements that define views."""

    def ask(self, sql: str) -> pa.Table:
        """The answer."""

    def files_read(self, sql: str, folder: str) -> int:
        """Run the statement; how many files below a folder of the output it opened."""


class DuckDB:
    dialect = Dialect.DUCKDB

    def __init__(self) -> None:
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'")

    def define(self, statements: Sequence[str]) -> None:
        for statement in statements:
            self._connection.execute(statement)

    def ask(self, sql: str) -> pa.Table:
        return self._connection.sql(sql).to_arrow_table()

    def files_read(self, sql: str, folder: str) -> int:
        ((_, text),) = self._connection.execute(f"EXPLAIN (ANALYZE, FORMAT json) {sql}").fetchall()
        (plan,) = json.loads(text)["operator"]
        return sum(_duckdb_files(plan, f"/{folder}/"))


def _duckdb_files(node: dict[str, Any], folder: str) -> Iterator[int]:
    facts = node.get("extra_info", {})
    if folder in str(facts.get("Filename(s)")):
        yield int(facts["Total Files Read"])
    for child in node.get("children", []):
        yield from _duckdb_files(child, folder)


class DataFusion:
    dialect = Dialect.DATAFUSION

    def __init__(self) -> None:
        from datafusion import SessionContext

        self._context = SessionContext()

    def define(self, statements: Sequence[str]) -> None:
        for statement in statements:
            self._context.sql(statement)

    def ask(self, sql: str) -> pa.Table:
        return self._context.sql(sql).to_arrow_table()

    def files_read(self, sql: str, folder: str) -> int:
        (plan,) = self._context.sql(f"EXPLAIN ANALYZE {sql}").to_pylist()
        scans = [line for line in plan["plan"].splitlines() if "DataSourceExec" in line and f"/{folder}/" in line]
        # files_opened counts those, too, that are let go at once for what their partition says
        return sum(int(kept) for scan in scans for kept in _DATAFUSION_FILES.findall(scan))


class Spark:
    """Wants Java; one session is started and shared, for it takes seconds."""

    dialect = Dialect.SPARK
    _session: Any = None

    def __init__(self) -> None:
        if Spark._session is None:
            Spark._session = _spark_session()

    def define(self, statements: Sequence[str]) -> None:
        for statement in statements:
            self._session.sql(statement)

    def ask(self, sql: str) -> pa.Table:
        return self._session.sql(sql).toArrow()

    def files_read(self, sql: str, folder: str) -> int:
        answer = self._session.sql(sql)
        answer.collect()
        scans = _spark_scans(answer._jdf.queryExecution().executedPlan())
        return sum(
            scan.metrics().apply("numFiles").value()
            for scan in scans
            if f"/{folder}" in scan.relation().location().rootPaths().mkString()
        )

    def plan(self, sql: str) -> str:
        """The physical plan in words."""
        return str(self._session.sql(sql)._jdf.queryExecution().executedPlan().toString())


def _spark_session() -> Any:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java: apt-get install openjdk-17-jre-headless")
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.memory": "512m",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
    }
    builder = SparkSession.builder.master("local[1]").appName("batchdet")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _spark_scans(node: Any) -> Iterator[Any]:
    """The file scans of a physical plan that has run, those inside adaptive stages too."""
    kind = node.getClass().getSimpleName()
    if kind == "FileSourceScanExec":
        yield node
    elif kind == "AdaptiveSparkPlanExec":
        yield from _spark_scans(node.executedPlan())
    elif kind.endswith("QueryStageExec"):
        yield from _spark_scans(node.plan())
    children = node.children()
    for number in range(children.size()):
        yield from _spark_scans(children.apply(number))
