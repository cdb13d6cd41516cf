"""Door to the comparison of two runs. Knows flags and how to show an account, not how it is made."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from batchdet.analysis.alarms import require_quiet
from batchdet.analysis.changes import compare_runs, write_changes
from batchdet.analysis.config import DiffConfig, load_diff
from batchdet.cli.options import AsJson, OutputUri, open_output, read_settings
from batchdet.cli.output import print_json, print_table, print_text
from batchdet.errors import ConfigError, StorageError
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.location import locate

_PLACES = ("storage.output.", "compare.", "alarms.")
_IMAGE_ROWS = (
    ("new", "new"),
    ("relabelled", "labelled again"),
    ("same_content", "of them with the same bytes"),
    ("recovered", "recovered"),
    ("new_failed", "new and failed"),
    ("newly_failed", "newly failed"),
    ("still_failed", "failed again"),
    ("deleted", "deleted"),
)
_BOX_COLUMNS = ("boxes", "added", "removed", "moved", "rescored", "reclassed", "unchanged", "churn")
_CATEGORY_COLUMNS = (
    "category",
    "added",
    "removed",
    "moved",
    "rescored",
    "from other",
    "to other",
    "unchanged",
    "churn",
    "score",
)

DiffSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="`compare.iou_threshold=0.6`, `alarms.max_churn=0.2`, `storage.output.endpoint_url=https://…`; repeat.",
    ),
]


def diff(
    output: OutputUri,
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A complete run: what readers saw after it.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="A later complete run: what they see after it.")],
    alarms: Annotated[
        str | None, typer.Option(metavar="FILE", help="Thresholds (YAML); exits 3 if one is passed.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="Write changes and summary there, as Parquet and JSON.")
    ] = None,
    settings: DiffSettings = None,
    as_json: AsJson = False,
) -> None:
    """What the runs after RUN_A, up to RUN_B, changed for readers: boxes, images, scores, failures.

    With --alarms, or --set of a field of `alarms`, exits 3 if a threshold is passed.
    """
    config, storage = _split(alarms, settings)
    store = open_output(output, storage)
    if to is None:
        summary = compare_runs(store, run_a, run_b, config)
    else:
        summary = write_changes(store, run_a, run_b, config, _open_target(to, store))
    if as_json:
        print_json(summary)
    else:
        _show(summary)
    require_quiet(summary)


def _split(alarms: str | None, settings: list[str] | None) -> tuple[DiffConfig, list[str]]:
    """The settings of the comparison, and those of the storage as they were given."""
    values = read_settings(settings)
    for field in values:
        if not field.startswith(_PLACES):
            raise ConfigError(f"--set {field}: only storage.output.*, compare.* and alarms.* matter here")
    config = load_diff(alarms, {field: value for field, value in values.items() if not field.startswith("storage.")})
    return config, [text for text in settings or () if text.startswith("storage.")]


def _open_target(uri: str, output: Store) -> Store:
    """Where changes are written; it takes the output's options where it is on the same kind of store.

    Raises:
        ConfigError: no filesystem serves the URI.
    """
    try:
        return open_store(uri, output.options if locate(uri).protocol == output.protocol else {})
    except StorageError as error:
        raise ConfigError(f"--to {error}") from error


def _show(summary: Mapping[str, Any]) -> None:
    print_table(("measure", "before", "after", "change"), _measures(summary))
    print_text("\n")
    images = summary["images"]
    print_table(("images", "number"), [(said, images[name]) for name, said in _IMAGE_ROWS])
    print_text("\n")
    print_table(_BOX_COLUMNS, _boxes(summary))
    print_text("\n")
    print_table(_CATEGORY_COLUMNS, _categories(summary))
    if summary["alarms"]:
        print_text("\n")
        rows = [(alarm["name"], alarm["sentence"]) for alarm in summary["alarms"]]
        print_table(("alarm", "what was found"), rows)


def _measures(summary: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    before, after = summary["state"]["before"], summary["state"]["after"]
    yield ("run", summary["run_before"]["run_id"], summary["run_after"]["run_id"], None)
    for name in ("images", "failed", "detections"):
        yield (name, before[name], after[name], f"{after[name] - before[name]:+d}")
    yield ("failure rate", _percent(before["failure_rate"]), _percent(after["failure_rate"]), None)
    yield ("failure rate, not failed before", None, _percent(summary["failures"]["failure_rate"]), None)
    for name, where in (("relabelled", "labelled again"), ("runs", "run to run")):
        counts, scores = summary[name]["counts"], summary[name]["scores"]
        means = (_rounded(counts["per_image_before"]), _rounded(counts["per_image_after"]))
        yield (f"detections an image, {where}", *means, _percent(counts["change"], "+"))
        shift = None if scores["ks"] is None else f"{scores['mean_shift']:+.3f}, KS {scores['ks']:.3f}"
        yield (f"mean score, {where}", _rounded(scores["mean_before"]), _rounded(scores["mean_after"]), shift)


def _boxes(summary: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    kinds = ("added", "removed", "moved", "rescored", "reclassed", "unchanged")
    rows = (("changes", "all"), ("relabelled", "images labelled again"), ("same_content", "of them the same bytes"))
    for name, said in rows:
        found = summary[name]
        yield (said, *(found[kind] for kind in kinds), _percent(found["churn"]))


def _categories(summary: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """On images labelled again, the most churned first."""
    kinds = ("added", "removed", "moved", "rescored", "reclassed_from", "reclassed_to", "unchanged")
    found = [(name, one) for name, one in summary["categories"].items() if one["objects"]]
    for name, one in sorted(found, key=lambda row: (-row[1]["churn"], row[0])):
        shift = one["scores"]["mean_shift"]
        score = None if shift is None else f"{shift:+.3f}"
        yield (name, *(one[kind] for kind in kinds), _percent(one["churn"]), score)


def _percent(share: float | None, sign: str = "") -> str | None:
    return None if share is None else f"{share:{sign}.1%}"


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
