"""The dashboard's panels as one picture, from what a Prometheus answers: for reports, and where there is no Grafana.

python deploy/monitoring/render.py --prometheus http://127.0.0.1:9090 --minutes 60 --to dashboard.png
"""

import argparse
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import dates
from matplotlib import pyplot as plt

DASHBOARD = Path(__file__).with_name("dashboard.json")
POINTS = 120
"""Of a line."""

GRID = 24
"""Columns of Grafana's grid."""

DAY = 86400.0
"""Seconds of matplotlib's unit of time."""


def main() -> None:
    """Read the flags, ask, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--minutes", type=float, default=60.0, help="back from --end")
    parser.add_argument("--end", type=float, default=time.time(), help="seconds since 1970")
    parser.add_argument("--rate-minutes", type=float, default=5.0, help="over which rates are taken")
    parser.add_argument("--to", required=True, metavar="FILE")
    flags = parser.parse_args()
    span = (flags.end - 60 * flags.minutes, flags.end)
    render(flags.prometheus, span, f"{round(60 * flags.rate_minutes)}s", Path(flags.to))


def render(server: str, span: tuple[float, float], rate: str, to: Path) -> None:
    """Draw every panel where Grafana would have it.

    Args:
        server: Prometheus' URL.
        span: first and last moment shown, seconds since 1970.
        rate: Grafana's `$__rate_interval`, such as `300s`.
        to: the PNG.
    """
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(18, 0.4 * rows))
    for panel in panels:
        axes = figure.add_axes(_place(panel["gridPos"], rows))
        axes.set_title(panel["title"], loc="left", fontsize=10)
        lines = [line for target in panel["targets"] for line in _ask(server, target, span, rate)]
        if panel["type"] == "stat":
            _draw_stat(axes, panel, lines)
        else:
            _draw_lines(axes, panel, lines)
            axes.set_xlim(span[0] / DAY, span[1] / DAY)
    figure.savefig(to, dpi=80)


def _place(place: dict[str, int], rows: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel's axes, as shares of the figure."""
    margin_x, margin_y, title = 0.9, 0.8, 0.9
    left, bottom = place["x"] + margin_x, rows - place["y"] - place["h"] + margin_y
    width, height = place["w"] - margin_x - 0.3, place["h"] - margin_y - title
    return left / GRID, bottom / rows, width / GRID, height / rows


def _ask(server: str, target: dict[str, Any], span: tuple[float, float], rate: str) -> list[tuple[str, list[Any]]]:
    """Legend and points of each series of a target."""
    asked = {
        "query": target["expr"].replace("$__rate_interval", rate),
        "start": span[0],
        "end": span[1],
        "step": max((span[1] - span[0]) / POINTS, 1),
    }
    url = f"{server}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the URL is the caller's own
        found = json.load(answer)["data"]["result"]
    return [(_legend(target["legendFormat"], one["metric"]), one["values"]) for one in found]


def _legend(form: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        form = form.replace("{{" + name + "}}", value)
    return form


def _draw_lines(axes: Any, panel: dict[str, Any], lines: list[tuple[str, list[Any]]]) -> None:
    for legend, values in lines:
        when = [moment / DAY for moment, _ in values]
        axes.plot(when, [float(value) for _, value in values], label=legend, linewidth=1.4)
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=6))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=7)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_ylabel(panel["fieldConfig"]["defaults"]["unit"], fontsize=7)
    if lines:
        axes.legend(fontsize=7, ncols=3, loc="upper left", frameon=False)


def _draw_stat(axes: Any, panel: dict[str, Any], lines: list[tuple[str, list[Any]]]) -> None:
    axes.axis("off")
    is_share = panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    shown = [(legend, float(values[-1][1])) for legend, values in lines]
    text = "\n".join(f"{legend} {value:.1%}" if is_share else f"{legend} {value:,.0f}" for legend, value in shown)
    axes.text(0.5, 0.45, text or "no data", ha="center", va="center", fontsize=20, transform=axes.transAxes)


if __name__ == "__main__":
    main()
