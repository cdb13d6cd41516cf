"""Dashboard and alerts ask for what labelling exports: Debian's Prometheus answers every expression."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import Night
from tests.deploy.prometheus import MONITORING, Prometheus
from tests.deploy.test_metrics import LABELS

DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
EXPRESSIONS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
ALERTS = {
    rule["alert"]: rule["expr"]
    for rule in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
}

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="Debian's prometheus is not installed")


@pytest.fixture(scope="module")
def server(night: Night) -> Prometheus:
    """It has scraped the end of the night."""
    if night.server is None:
        pytest.skip("Debian's prometheus is not installed")
    images = night.row["num_labelled"] + night.row["num_failed"]
    night.server.until(f"sum(ray_batchdet_images_total) == {images}")
    # Two scrapes of the last series to come: a rate needs two.
    night.server.until("count_over_time(ray_batchdet_shards_committed_total[1m]) >= 2")
    return night.server


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_panel_shows_the_night(expression: str, server: Prometheus) -> None:
    asked = expression.replace("$__rate_interval", "10m")
    # Gauges end with their driver: they are asked for over the time that it ran.
    series = server.ask("query", query=f"last_over_time(({asked})[10m:1s])")["result"]
    assert series, asked
    assert all(float(one["value"][1]) >= 0 for one in series if one["value"][1] != "NaN")


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_an_expression_over_known_metrics(alert: str, server: Prometheus) -> None:
    server.series(ALERTS[alert])
    assert used(ALERTS[alert]) <= exported()


def test_the_numbers_on_the_dashboard_are_the_rows(night: Night, server: Prometheus) -> None:
    by_status = {one["metric"]["status"]: float(one["value"][1]) for one in server.series(panel("Images committed"))}
    assert by_status == {"labelled": night.row["num_labelled"], "failed": night.row["num_failed"]}
    ((share,),) = [[float(one["value"][1])] for one in server.series(panel("Failed share"))]
    assert share == pytest.approx(night.row["num_failed"] / sum(by_status.values()))
    (opened,) = server.series("max_over_time(sum(ray_batchdet_shards_open)[10m:1s])")
    assert float(opened["value"][1]) >= 1
    assert [one["value"][1] for one in server.series("last_over_time(ray_batchdet_shards_open[10m])")] == ["0"]


def test_the_dashboard_is_drawn(server: Prometheus, tmp_path: Path) -> None:
    picture = tmp_path / "dashboard.png"
    flags = ["--prometheus", f"http://{server.address}", "--minutes", "10", "--to", picture]
    done = subprocess.run([sys.executable, MONITORING / "render.py", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_dashboard_and_alerts_name_only_exported_metrics() -> None:
    for text in [*(param.values[0] for param in EXPRESSIONS), *ALERTS.values()]:
        assert used(str(text)), text
        assert used(str(text)) <= exported()


def test_every_exported_metric_is_shown() -> None:
    shown = set().union(*(used(str(param.values[0])) for param in EXPRESSIONS))
    assert {name for name in exported() if not name.startswith("ray_batchdet_shard_stage_seconds")} <= shown


def test_panels_do_not_overlap() -> None:
    places = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in DASHBOARD["panels"]
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_promtool
@pytest.mark.parametrize(("kind", "name"), [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_promtool_accepts(kind: str, name: str) -> None:
    done = subprocess.run(["promtool", "check", kind, MONITORING / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for path in (MONITORING / "alerts.yml", Path(__file__).with_name("alerts_test.yml")):
        shutil.copy(path, tmp_path)
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "alerts_test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def used(expression: str) -> set[str]:
    """Names of metrics in an expression."""
    return set(re.findall(r"ray_batchdet_\w+", expression))


def exported() -> set[str]:
    """Names that `test_metrics` found exported."""
    return {f"ray_batchdet_{name}" for name in LABELS}


def panel(title: str) -> str:
    """The first expression of a panel."""
    (found,) = [panel for panel in DASHBOARD["panels"] if panel["title"] == title]
    return str(found["targets"][0]["expr"])
