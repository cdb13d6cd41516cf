"""The story of a model's release: into a registry, through the gate, live, and back. Knows no Ray and no training."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from batchdet.config import JobConfig, ModelConfig
from batchdet.engine.card import pack_model
from batchdet.engine.checkpoint import load_model
from batchdet.errors import ConfigError
from batchdet.measure import Measurement, is_measurable, measure_model
from batchdet.progress import Progress
from batchdet.run import Runner, recorded_versions
from batchdet.storage.filesystem import Store
from batchdet.storage.promotion import Promotions, promote, read_promotions, refuse, roll_back
from batchdet.storage.registry import CARD_NAME, fetch_model, open_model
from batchdet.storage.versions import add_version, next_version, read_card, require_new
from batchdet.training.gate import Tolerances, judge


@dataclass(frozen=True, slots=True)
class Release:
    """What became of a version.

    Attributes:
        reference: the version, as `--model` takes it.
        promoted: it is live now.
        instead_of: the version that was live before; None where none was.
        reasons: why it was not promoted.
        candidate, live: what both measured; None where nothing was.
    """

    reference: str
    promoted: bool
    instead_of: str | None
    reasons: tuple[str, ...] = ()
    candidate: Measurement | None = None
    live: Measurement | None = None


def import_version(model: ModelConfig, registry: str, options: Mapping[str, Any]) -> str:
    """Copy a model into a registry as a new version; what the card of a registry's model says of it goes along.

    Args:
        model: what `label` takes.
        registry: `REGISTRY/<name>[@version]`; the next number without a version.
        options: fsspec storage options, of both.

    Returns:
        The version's reference.

    Raises:
        ModelError: the model is unusable, or the version is there.
        StorageError: the registry cannot be read or written.
    """
    folder, wanted = open_model(registry, options)
    version = wanted or next_version(folder)
    require_new(folder, version)
    files = fetch_model(model.reference, options)
    module, info = load_model(model, files)
    card = {} if files is None or files.card is None else json.loads(files.card.read_bytes())
    lineage = {
        "parent": None,
        **(card.get("lineage") or {}),
        "imported_from": model.reference,
        "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": recorded_versions(),
    }
    add_version(folder, version, pack_model(module, info, lineage, card.get("metrics")))
    return _reference(folder, version)


def promote_measured(
    job: JobConfig, gold_uri: str, tolerances: Tolerances, runner: Runner, progress: Progress
) -> Release:
    """Measure a version and the live one on the same gold, and make it live if it is no worse.

    Args:
        job: as for `measure_model`; its model is `REGISTRY/<name>@<version>`.
        gold_uri: COCO json that neither model was trained on.
        tolerances: what may fall how far.
        runner: where to label.
        progress: told what happens.

    Raises:
        UserError, RunError: as `measure_model`; or another version was promoted meanwhile.
    """
    folder, version, known = _candidate(job.model.reference, job.storage.source)
    candidate = measure_model(job, gold_uri, runner, progress)
    live = None
    reasons: tuple[str, ...] = ()
    if known.version is not None:
        model = job.model.model_copy(update={"reference": _reference(folder, known.version)})
        rival = job.model_copy(update={"model": model})
        if is_measurable(rival, gold_uri):
            live = measure_model(rival, gold_uri, runner, progress)
            reasons = _reasons(candidate, live, tolerances)
        else:
            reasons = (_unlike(known.version, gold_uri),)
    facts = _facts(candidate, live)
    if reasons:
        refuse(folder, version, reasons, known, **facts)
    else:
        promote(folder, version, "first" if live is None else "gate", known, **facts)
    return Release(_reference(folder, version), not reasons, known.version, reasons, candidate, live)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A trained model as measured, and what it is held against.

    Attributes:
        student: measured on held-out gold.
        teacher: the model it was made of, on the same; None without one.
        tolerances: what may fall how far.
    """

    student: Measurement
    teacher: Measurement | None
    tolerances: Tolerances


def release_trained(
    registry: str,
    options: Mapping[str, Any],
    verdicts: Verdicts,
    pack: Callable[[Mapping[str, Any]], Mapping[str, bytes]],
    measure: Callable[[str], Measurement | None],
) -> Release:
    """Put a trained model into a registry, and make it live if it is no worse than its teacher and the live version.

    Called again for the same model it finds the version, and what became of it.

    Args:
        registry: `REGISTRY/<name>`.
        options: fsspec storage options.
        verdicts: what it is worth.
        pack: makes the files of the version, given its metrics.
        measure: measures a reference on the same gold; None for one that knows no category of it.

    Raises:
        ModelError: another version was added or promoted meanwhile.
        StorageError: the registry cannot be read or written.
    """
    folder, _ = open_model(registry, options)
    known = read_promotions(folder)
    student, teacher = verdicts.student, verdicts.teacher
    version = _version_of(folder, student.model.digest)
    live, unlike = None, []
    if known.version is not None and known.version != version:
        live = _measure_live(folder, known.version, teacher, measure)
        unlike = [] if live else [_unlike(known.version, student.gold.uri)]
    fallen = (reason for rival in (teacher, live) if rival for reason in _reasons(student, rival, verdicts.tolerances))
    reasons = tuple(dict.fromkeys([*fallen, *unlike]))
    if version is None:
        version = next_version(folder)
        metrics = asdict(student.evaluation.score) | {"gold": student.gold.uri, "gold_digest": student.gold.digest}
        add_version(folder, version, pack(metrics | {"refused_because": list(reasons)}))
    release = Release(_reference(folder, version), not reasons, known.version, reasons, student, live or teacher)
    if known.version != version:
        _settle(folder, version, reasons, known, _facts(student, live or teacher))
    return release


def _measure_live(
    folder: Store, version: str, teacher: Measurement | None, measure: Callable[[str], Measurement | None]
) -> Measurement | None:
    """The live version, which often is the teacher and measured already."""
    if teacher is not None and read_card(folder, version).get("model_digest") == teacher.model.digest:
        return teacher
    return measure(_reference(folder, version))


def _unlike(live_version: str, gold_uri: str) -> str:
    """Why nothing takes the place of a version that the gold set cannot measure."""
    return (
        f"version {live_version}, which is live, knows no category of {gold_uri}: they cannot be compared; "
        "`models promote --no-gate` does not ask"
    )


def _settle(folder: Store, version: str, reasons: tuple[str, ...], known: Promotions, facts: dict[str, Any]) -> None:
    if not reasons:
        promote(folder, version, "gate", known, **facts)
    elif known.version is not None and version not in [entry.get("version") for entry in known.refused]:
        # Where nothing is live yet there is no promoted.json to write it into; the version's card has the reasons.
        refuse(folder, version, reasons, known, **facts)


def _reasons(student: Measurement, rival: Measurement, tolerances: Tolerances) -> tuple[str, ...]:
    return judge(student.evaluation.score, rival.evaluation.score, tolerances).reasons


def _version_of(folder: Store, digest: str) -> str | None:
    """The version that is this very model."""
    for name in folder.list_folders(""):
        version = name.rsplit("/", 1)[-1]
        if folder.exists(f"{version}/{CARD_NAME}") and read_card(folder, version).get("model_digest") == digest:
            return version
    return None


def promote_unmeasured(reference: str, options: Mapping[str, Any], *, no_gate: bool) -> Release:
    """Make a version live that nothing is compared with.

    Args:
        reference: `REGISTRY/<name>@<version>`.
        options: fsspec storage options.
        no_gate: even where another version is live.

    Raises:
        ConfigError: another version is live.
        ModelError: there is no such version, or another was promoted meanwhile.
    """
    folder, version, known = _candidate(reference, options)
    if known.version is not None and not no_gate:
        raise ConfigError(
            f"promote {reference}: version {known.version} is live; give --gold and --images to measure both, "
            "or --no-gate"
        )
    promote(folder, version, "first" if known.version is None else "by hand", known)
    return Release(_reference(folder, version), True, known.version)


def take_back(reference: str, options: Mapping[str, Any]) -> Release:
    """Make the version live again that was before the live one was promoted.

    Raises:
        ModelError: there was none, or another was promoted meanwhile.
    """
    folder, wanted = open_model(reference, options)
    if wanted is not None:
        raise ConfigError(f"rollback {reference}: takes no version; promote that version instead")
    before = read_promotions(folder).version
    return Release(_reference(folder, str(roll_back(folder).version)), True, before)


def _candidate(reference: str, options: Mapping[str, Any]) -> tuple[Store, str, Promotions]:
    folder, version = open_model(reference, options)
    if version is None:
        raise ConfigError(f"promote {reference}: name the version, as {reference}@VERSION")
    read_card(folder, version)
    known = read_promotions(folder)
    if known.version == version:
        raise ConfigError(f"promote {reference}: it is live already")
    return folder, version, known


def _reference(folder: Store, version: str) -> str:
    return f"{folder.uri}@{version}"


def _facts(candidate: Measurement, live: Measurement | None) -> dict[str, Any]:
    """What the history records of a measurement."""
    facts: dict[str, Any] = {
        "gold": candidate.gold.uri,
        "gold_digest": candidate.gold.digest,
        "map": candidate.evaluation.score.map,
        "model_digest": candidate.model.digest,
    }
    return facts if live is None else facts | {"live_map": live.evaluation.score.map}
