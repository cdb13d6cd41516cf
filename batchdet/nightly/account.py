"""A night's steps summed up, for the journal and for people. Knows no storage."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from batchdet.errors import BatchdetError
from batchdet.nightly.journal import Document
from batchdet.notify import Message


def sum_up(
    night: str,
    output: str,
    steps: Mapping[str, Any],
    error: BatchdetError | None,
    earlier: Mapping[str, Any] | None,
    now: datetime,
) -> Document:
    """The summary of a night.

    Args:
        night: its name.
        output: URI of the folder.
        steps: what each step left, by name, as far as they went.
        error: what ended the night; None where all is well.
        earlier: the summary of the night before; None for the first.
        now: UTC.
    """
    return {
        "night": night,
        "output": output,
        "started_at": steps["begun"]["started_at"] if "begun" in steps else now.isoformat(),
        "finished_at": now.isoformat(),
        "exit_code": 0 if error is None else error.exit_code,
        "error": None if error is None else str(error),
        "since_retraining": _since_retraining(steps, earlier, now),
        "steps": dict(steps),
    }


def images_accepted(steps: Mapping[str, Any]) -> int:
    """Images of complete runs of the night with an accepted detection, those of a run it only ended among them."""
    labelled = steps.get("label") or steps.get("finish", {})
    return int(labelled.get("images_accepted", 0))


def out_of_time(steps: Mapping[str, Any]) -> str | None:
    """The step whose run the night's hours ended; None where none was."""
    return next((name for name, found in steps.items() if found.get("status") == "partial"), None)


def _since_retraining(steps: Mapping[str, Any], earlier: Mapping[str, Any] | None, now: datetime) -> Document:
    """When the last student was trained, or the first night was, and what was labelled since."""
    accepted = images_accepted(steps)
    if "reference" in steps.get("retrain", {}) or earlier is None:
        is_first = earlier is None
        time = steps["begun"]["started_at"] if "begun" in steps else now.isoformat()
        return {"time": time, "images_accepted": accepted if is_first else 0}
    since = earlier["since_retraining"]
    return {"time": since["time"], "images_accepted": since["images_accepted"] + accepted}


def message(summary: Mapping[str, Any]) -> Message:
    """What people are told of a night."""
    title = f"night {summary['night']} of {summary['output']} {ending(summary)}"
    return Message(title, tuple(lines(summary)), json.dumps(summary, ensure_ascii=False))


def ending(summary: Mapping[str, Any]) -> str:
    """How the night ended, as the end of a sentence."""
    if summary["exit_code"]:
        return f"needs you (exit {summary['exit_code']})"
    step = out_of_time(summary["steps"])
    if step is None:
        return "is done"
    run_id = summary["steps"][step]["run_id"]
    return f"is out of hours: run {run_id} is partial; the next night goes on with it, or the same night begun again"


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """A few facts of a night, a line each."""
    if summary["error"]:
        yield summary["error"]
    for step, found in findings(summary["steps"]):
        yield f"{step}: {found}"


def findings(steps: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What came of the steps that were not skipped, as (step, sentence); a step may have several."""
    for step, found in steps.items():
        # a run that is not ended is the outcome of two steps
        is_told = step == "label" and found == steps.get("finish")
        if step in _TOLD and "skipped" not in found and not is_told:
            yield from ((step, sentence) for sentence in _TOLD[step](found))


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"run {run['run_id']} {run['status']}, {run['num_labelled']:,} labelled, {run['num_failed']:,} failed, "
        f"{run['num_unchanged']:,} unchanged, {run['num_deleted']:,} deleted, {run['num_detections']:,} detections"
    )


def _receipt(receipt: Mapping[str, Any]) -> Iterator[str]:
    yield f"run {receipt['run_id']} passed" if receipt["passed"] else "; ".join(receipt["wrong"].values())


def _changes(changes: Mapping[str, Any]) -> Iterator[str]:
    images, boxes = changes["images"], changes["changes"]
    seen = f"{images['new']:,} new, {images['relabelled']:,} labelled again, {images['deleted']:,} deleted"
    told = (f"{boxes[name]:,} {name}" for name in ("added", "removed", "moved", "rescored", "reclassed"))
    yield f"images: {seen}; boxes: {', '.join(told)}"
    for alarm in changes["alarms"] or ():
        yield f"alarm: {alarm['sentence']}"


def _retrained(made: Mapping[str, Any]) -> Iterator[str]:
    before, after = ("unmeasured" if made[name] is None else f"{made[name]:.3f}" for name in _SCORES)
    yield f"{made['reference']}: mAP {before} -> {after}, {'live' if made['promoted'] else 'not promoted'}"


_SCORES = ("teacher_map", "student_map")

_TOLD: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "finish": _run,
    "refilter": _run,
    "label": _run,
    "audit": _receipt,
    "changes": _changes,
    "retrain": _retrained,
    "relabel": _run,
    "relabel_audit": _receipt,
}
"""How each step is told."""
