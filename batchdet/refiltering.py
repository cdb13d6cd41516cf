"""Another policy over stored candidates, without a model. Knows no pictures and no command.

The latest rows of all images, as far as another policy judged them, become a derived run for each model and its
settings. Candidates stay; `accepted`, `num_detections` and `hit_detection_cap` are judged anew. A flag of
`hit_detection_cap` that was set stays set: a row does not say whether the model's cap bit or the earlier policy's.
"""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.config import PolicyConfig, canonical_json
from batchdet.engine.acceptance import Acceptance, Candidates, bind
from batchdet.errors import ConfigError
from batchdet.records import BoolArray, PlanCounts, RunRow
from batchdet.rewriting import (
    FILE_BYTES,
    Derivation,
    Group,
    Say,
    derive,
    derived_header,
    give_up_begun,
    groups_of,
    images_per_file,
    require_complete,
    require_none_open,
)
from batchdet.storage.filesystem import Store
from batchdet.storage.gathering import Rows
from batchdet.storage.ledger import Ledger
from batchdet.storage.schema import DETECTIONS, IMAGES
from batchdet.storage.selection import Selection, select_latest

JUDGED_TOGETHER = 16_384
"""Candidates judged at once, about: their columns stay in a core's cache."""


def newest_policy(output: Store) -> PolicyConfig:
    """The policy of the newest complete run.

    Raises:
        OutputError: there is none.
    """
    return PolicyConfig.model_validate_json(require_complete(Ledger(output))[0].policy)


def refilter(output: Store, policy: PolicyConfig, say: Say, file_bytes: int = FILE_BYTES) -> RunRow:
    """Judge the stored candidates of all current images by a policy.

    Failed images of the runs that are judged anew are failed rows again. Images of several models, or of one with
    several settings, become a run each, the newest one's last.

    Args:
        output: the output folder.
        policy: what is accepted from now on.
        say: told what happens.
        file_bytes: aimed at for a file.

    Returns:
        The row of the newest run, or of the newest that has this policy already where nothing is left to judge.

    Raises:
        ConfigError: a threshold lies under the newest model's stored score floor, or names a category it lacks.
        OutputError: no complete run, an open one, or a damaged file.
        StorageError: the output cannot be read or written; the same command goes on.
    """
    ledger = Ledger(output)
    require_none_open(ledger)
    rows = require_complete(ledger)
    groups = groups_of(ledger, rows, by_policy=False)
    bound = _bind_all(groups, policy, say)
    with select_latest(ledger, [row.run_id for row in rows]) as selection:
        done = []
        for group, acceptance in bound:
            work = _work(ledger, selection, group, policy, file_bytes)
            if work is not None:
                done.append(derive(ledger, selection, work, partial(rejudged, acceptance), say))
    give_up_begun(ledger, say)
    if done:
        return done[-1]
    say("every current image is judged by this policy already")
    return next((row for row in rows if row.policy_digest == policy.digest), rows[0])


def _bind_all(groups: list[Group], policy: PolicyConfig, say: Say) -> list[tuple[Group, Acceptance]]:
    """The policy for each group's model; an older model that it does not fit keeps what was accepted."""
    bound = []
    for group in groups:
        floor = float(json.loads(group.header.config)["model"]["score_floor"])
        try:
            bound.append((group, bind(policy, group.header.model.categories, floor)))
        except ConfigError as error:
            named = f"{error} (run {group.header.run_id}, {group.header.model.reference})"
            if group is groups[-1]:
                raise ConfigError(named) from error
            say(f"left as they are, the policy does not fit: {named}")
    return bound


def _work(
    ledger: Ledger, selection: Selection, group: Group, policy: PolicyConfig, file_bytes: int
) -> Derivation | None:
    """What of a group another policy judged; None where there is nothing."""
    counted = {row.run_id: selection.shares[row.run_id].num_images for row in group.rows}
    others = tuple(row for row in group.rows if row.policy_digest != policy.digest and counted[row.run_id])
    if not others:
        return None
    listed, planned = sum(counted.values()), sum(counted[row.run_id] for row in others)
    per_shard = images_per_file(ledger.output, others, file_bytes)
    run_ids = tuple(row.run_id for row in others)
    header = derived_header(ledger, group, {"by": "refilter"}, run_ids, per_shard)
    config = json.loads(header.config) | {"policy": policy.model_dump(mode="json")}
    header = replace(header, policy=policy.canonical, policy_digest=policy.digest, config=canonical_json(config))
    return Derivation(header, PlanCounts(listed, 0, planned, 0, listed - planned), run_ids, per_shard)


def rejudged(acceptance: Acceptance, rows: Rows) -> Rows:
    """The same rows, judged by a policy.

    Args:
        acceptance: the policy, for the model of the rows.
        rows: images with their candidates in canonical order.
    """
    accepted, over = _judge(acceptance, rows)
    images = rows.images
    counts = np.bincount(rows.owner[accepted], minlength=len(images)).astype(np.int32)
    failed = np.asarray(images.column("num_detections").is_null(), np.bool_)
    stored: Any = images.column("hit_detection_cap")
    flagged = np.asarray(pc.fill_null(stored, False), np.bool_)
    columns: dict[str, pa.Array[Any]] = {
        "num_detections": pa.array(counts, mask=failed),
        "hit_detection_cap": pa.array(flagged | over, mask=failed),
    }
    for name, column in columns.items():
        place = IMAGES.get_field_index(name)
        images = images.set_column(place, IMAGES.field(name), column)
    place = DETECTIONS.get_field_index("accepted")
    detections = rows.detections.set_column(place, DETECTIONS.field("accepted"), pa.array(accepted))
    return Rows(images, detections, rows.owner)


def _judge(acceptance: Acceptance, rows: Rows) -> tuple[BoolArray, BoolArray]:
    """[D] accepted and [N] over the cap, some images at a time."""
    table, owner = rows.detections, rows.owner
    boxes = np.stack([np.asarray(table.column(side)) for side in ("xmin", "ymin", "xmax", "ymax")], axis=1)
    scores, labels = np.asarray(table.column("score")), np.asarray(table.column("label"), np.int64)
    accepted, over = np.zeros(len(owner), np.bool_), np.zeros(len(rows.images), np.bool_)
    # Cut where an image begins.
    marks = owner[np.arange(JUDGED_TOGETHER, len(owner), JUDGED_TOGETHER)]
    cuts = [0, *np.unique(np.searchsorted(owner, marks)).tolist(), len(owner)]
    for start, stop in pairwise(cuts):
        if start < stop:
            first, last = int(owner[start]), int(owner[stop - 1])
            part = slice(start, stop)
            found = Candidates(boxes[part], scores[part], labels[part], owner[part] - first, last - first + 1)
            accepted[part], over[first : last + 1] = acceptance.judge(found)
    return accepted, over
