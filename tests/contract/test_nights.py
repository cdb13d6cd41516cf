"""Nights told one after the other: each step once, each night an honest account."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from batchdet.analysis.audit import audit_run
from batchdet.analysis.query import ask_columns
from batchdet.compaction import compact, remove
from batchdet.config import PolicyConfig
from batchdet.demo.shipped import shipped_model
from batchdet.errors import BatchdetError, ConfigError, OutputError, OutputHeldError, RunError
from batchdet.job_file import load_config
from batchdet.labelling import Hardware, InlineRunner, RunContext
from batchdet.nightly.account import findings, lines, message
from batchdet.nightly.job import NightlyConfig
from batchdet.nightly.night import Places, run_night
from batchdet.refiltering import refilter
from batchdet.release import Release
from batchdet.retraining import Retrained
from batchdet.storage.filesystem import open_store
from batchdet.storage.layout import is_kept
from batchdet.storage.lease import held
from batchdet.storage.ledger import Ledger
from batchdet.training.job import RetrainConfig
from batchdet.training.steps import StepLine
from tests.contract.buckets import Bucket, MakeJob, fresh_scene, new_bucket, picture
from tests.contract.conftest import Recorder
from tests.histories import Fused
from tests.histories import Killed as KilledWriting
from tests.servers.hook import Hook

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Nights:
    """The bucket's nights, a day apart."""

    bucket: Bucket
    registry: Path
    fields: dict[str, Any] = field(default_factory=dict)
    day: int = 0
    trained: list[RetrainConfig] = field(default_factory=list)
    recorder: Recorder = field(default_factory=Recorder)
    promotes: bool = True
    runner: Any = field(default_factory=lambda: InlineRunner(Hardware("cpu", 1)))

    def config(self, **fields: Any) -> NightlyConfig:
        job = self.bucket.job().model_dump(mode="json")
        job["model"]["reference"] = str(self.registry)
        return load_config(NightlyConfig, None, {"job": job, **self.fields, **fields})

    def spend(self, **fields: Any) -> dict[str, Any]:
        """The next night."""
        self.day += 1
        return self.again(**fields)

    def again(self, *, hours_later: float = 0, day: int | None = None, **fields: Any) -> dict[str, Any]:
        """The same night, begun anew."""
        noon = NOON + timedelta(days=self.day if day is None else day)
        now, name = noon + timedelta(hours=hours_later), noon.date().isoformat()
        return run_night(
            self.config(**fields), name, Places(self.runner, self.retrain), self.recorder, clock=lambda: now
        )

    def retrain(self, job: RetrainConfig) -> Retrained:
        """A student: the shipped model again, in other words."""
        self.trained.append(job)
        if self.promotes:
            promote_twin(self.registry)
        release = Release(f"{self.registry}@2", self.promotes, "1", () if self.promotes else ("mAP fell",), None, None)
        return Retrained(release, None, (), 0, 0, 5, 0, StepLine(5, 5, 1.0, {}, 0.1, 1.0, (), {}, 0.1))


def promote_twin(registry: Path) -> None:
    """Another digest, the same detections."""
    version = registry / "2"
    if version.exists():
        return
    shutil.copytree(registry / "1", version)
    card = json.loads((version / "model.json").read_text())
    card["categories"] = [name.upper() if name != "__background__" else name for name in card["categories"]]
    (version / "model.json").write_text(json.dumps(card))
    (registry / "promoted.json").write_text(json.dumps({"version": "2", "history": []}))


@pytest.fixture
def nights(make_job: MakeJob, tmp_path: Path) -> Nights:
    registry = tmp_path / "registry" / "shapes"
    shutil.copytree(shipped_model(), registry)
    return Nights(new_bucket(make_job, tmp_path), registry)


def retraining(nights: Nights, tmp_path: Path, **fields: Any) -> dict[str, Any]:
    train = {
        "source": {"outputs": [str(nights.bucket.output)]},
        "start": {"reference": str(nights.registry)},
        "output": str(tmp_path / "trainings"),
        "registry": str(nights.registry),
        "held_out": {"annotations": "held.json", "images": "held"},
        "length": {"steps": 5},
    }
    return {"retrain": {"train": train, **fields}}


def test_nights_follow_each_other(nights: Nights) -> None:
    first = nights.spend()
    assert (first["exit_code"], first["steps"]["label"]["classes"]["num_new"]) == (0, 8)
    assert first["steps"]["audit"]["passed"]
    assert [step for step, _ in findings(first["steps"])] == ["label", "audit", "changes"]
    assert first["steps"]["retrain"] == {"skipped": "not asked for"}
    picture(nights.bucket, 0).unlink()
    (nights.bucket.folder / "new.jpg").write_bytes(fresh_scene(3))
    second = nights.spend()
    label, changes = second["steps"]["label"], second["steps"]["changes"]
    assert (label["num_labelled"], label["num_deleted"], label["num_unchanged"]) == (1, 1, 7)
    assert changes["alarms"] == []
    written = nights.bucket.output / "nights" / second["night"]
    assert json.loads((written / "summary.json").read_text()) == second
    assert list((written / "changes").glob("changes-*.parquet"))
    third = nights.spend()
    assert (third["exit_code"], third["steps"]["label"]["num_unchanged"]) == (0, 8)


def test_a_night_that_is_done_is_not_done_again(nights: Nights) -> None:
    first = nights.spend()
    assert nights.again() == first
    assert len(nights.bucket.ask("SELECT run_id FROM runs")) == 1


class Killed(BaseException):
    """The process is gone."""


class DiesAfter(InlineRunner):
    """Labels some shards, and is gone."""

    def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
        super().run(context, list(shard_ids)[:1], progress)
        raise Killed


def test_a_night_that_died_goes_on_where_it_stopped(nights: Nights) -> None:
    nights.runner = DiesAfter(Hardware("cpu", 1))
    with pytest.raises(Killed):
        nights.spend()
    nights.runner = InlineRunner(Hardware("cpu", 1))
    summary = nights.again()
    assert (summary["exit_code"], summary["steps"]["label"]["num_labelled"]) == (0, 8)
    assert len(nights.bucket.ask("SELECT DISTINCT run_id FROM all_images")) == 1


def test_a_run_of_last_night_is_finished_and_tonight_is_labelled_too(nights: Nights) -> None:
    nights.runner = DiesAfter(Hardware("cpu", 1))
    with pytest.raises(Killed):
        nights.spend()
    nights.runner = InlineRunner(Hardware("cpu", 1))
    (nights.bucket.folder / "new.jpg").write_bytes(fresh_scene(3))
    label = nights.spend()["steps"]["label"]
    assert (len(label["runs"]), label["num_labelled"], label["num_unchanged"]) == (2, 1, 8)


class Fails(InlineRunner):
    """A cluster that is lost."""

    def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
        raise RunError("the cluster was lost")


def test_a_failure_is_told_and_the_same_night_goes_on(nights: Nights) -> None:
    nights.runner = Fails(Hardware("cpu", 1))
    summary = nights.spend()
    assert (summary["exit_code"], summary["error"]) == (1, "the cluster was lost")
    assert "label" not in summary["steps"]
    nights.runner = InlineRunner(Hardware("cpu", 1))
    assert nights.again()["exit_code"] == 0


def test_out_of_time_is_no_failure_and_nothing_is_labelled_twice(nights: Nights) -> None:
    hours = {"job.limits.max_hours": 1e-9}
    short = nights.spend(**hours)
    assert (short["exit_code"], short["steps"]["label"]["status"]) == (0, "partial")
    assert short["steps"]["changes"] == {"skipped": "labelling goes on in the next night"}
    whole = nights.spend()
    assert whole["steps"]["label"]["runs"][0] == short["steps"]["label"]["run_id"]
    assert len(whole["steps"]["label"]["runs"]) == 2
    assert len(nights.bucket.ask("SELECT image_uri FROM all_images")) == 8


def test_a_night_begun_again_after_its_hours_has_them_anew(nights: Nights) -> None:
    """As labelling does whose hours are over: the same command goes on."""
    short = nights.spend(**{"job.limits.max_hours": 1e-9})
    assert nights.recorder.lines[-1] == (
        f"night 2026-03-02 is out of hours: run {short['steps']['label']['run_id']} is partial; "
        "the next night goes on with it, or the same night begun again"
    )
    assert message(short).title.startswith("night 2026-03-02 of ")
    assert " is out of hours: run " in message(short).title
    hours = {"job.limits.max_hours": 6}
    nights.runner = Watching(Hardware("cpu", 1))
    whole = nights.again(hours_later=8, **hours)
    assert nights.runner.hours == [6]
    assert "night 2026-03-02 is begun again after its hours: limits.max_hours begins anew" in nights.recorder.lines
    assert (whole["exit_code"], whole["steps"]["label"]["status"]) == (0, "complete")
    assert whole["steps"]["label"]["run_id"] == short["steps"]["label"]["run_id"]
    assert whole["steps"]["audit"]["passed"]
    assert whole["steps"]["changes"]["images"]["new"] == 8
    assert whole["since_retraining"]["images_accepted"] > 0
    assert whole["started_at"] == short["started_at"]
    assert nights.again(hours_later=9, **hours) == whole
    assert nights.recorder.lines[-1] == "night 2026-03-02 is done; --night names another"


def test_a_night_that_died_goes_on_in_what_is_left_of_its_hours(nights: Nights) -> None:
    hours = {"job.limits.max_hours": 6}
    for number, (hours_later, left) in enumerate([(0, 6), (2, 4), (7, 6), (8, 5)]):
        nights.runner = Dying(Hardware("cpu", 1))
        with pytest.raises(Killed):
            (nights.again if number else nights.spend)(hours_later=hours_later, **hours)
        assert nights.runner.hours == pytest.approx([left])


def test_a_night_that_another_followed_is_left_to_it(nights: Nights) -> None:
    short = nights.spend(**{"job.limits.max_hours": 1e-9})
    nights.spend()
    runs = nights.bucket.ask("SELECT run_id FROM runs")
    assert nights.again(day=1, hours_later=48) == short
    assert nights.recorder.lines[-1].endswith("is left to night 2026-03-03, which was begun since")
    assert nights.bucket.ask("SELECT run_id FROM runs") == runs


class Watching(InlineRunner):
    """Remembers the hours of each run."""

    def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
        self.__dict__.setdefault("hours", []).append(context.job.limits.max_hours)
        super().run(context, shard_ids, progress)


class Dying(Watching):
    """Remembers the hours, and is gone before the first shard."""

    def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
        super().run(context, [], progress)
        raise Killed


DEATHS = (
    "begun.json",
    "finish.json",
    "detections/",
    "images/",
    "runs/",
    "refilter.json",
    "manifest-00000",
    "plan.json",
    "detections/",
    "images/",
    "runs/",
    "label.json",
    "audit.json",
    "changes-00000",
    "changes/summary.json",
    "changes.json",
    "retrain.json",
    "plan.json",
    "images/",
    "runs/",
    "relabel.json",
    "relabel_audit.json",
    "2026-03-03/summary.json",
)
"""What the process of one night dies before writing, in order: somewhere in each step, and with each step done."""


def test_a_night_killed_in_every_step_does_each_once(nights: Nights, tmp_path: Path) -> None:
    Doomed.store.clear()
    nights.bucket.output = "doomed://out"  # type: ignore[assignment]
    nights.fields = retraining(nights, tmp_path, every_days=1)
    nights.spend()
    picture(nights.bucket, 0).unlink()
    (nights.bucket.folder / "new.jpg").write_bytes(fresh_scene(3))
    Doomed.deaths = list(DEATHS)
    strict = {"job.policy.score_threshold": 0.9}
    for number, place in enumerate(DEATHS):
        with pytest.raises(Killed):
            (nights.again if number else nights.spend)(**strict)
        assert len(Doomed.deaths) == len(DEATHS) - number - 1, f"lived on past {place}"
    summary = nights.again(**strict)
    assert (summary["exit_code"], summary["error"]) == (0, None)
    steps = summary["steps"]
    assert [steps[name]["num_labelled"] for name in ("refilter", "label", "relabel")] == [8, 1, 8]
    assert steps["changes"]["images"]["new"] == steps["changes"]["images"]["deleted"] == 1
    assert steps["relabel"]["classes"]["num_stale"] == 8
    assert summary["since_retraining"]["images_accepted"] == 0
    output = open_store("doomed://out", {})
    runs = Ledger(output).run_rows()
    assert [(row.status, row.num_labelled) for row in runs] == [("complete", count) for count in (8, 1, 8, 8)]
    for row in runs:
        audit_run(output, row.run_id).require_passed()
    shown = ask_columns(output, "SELECT image_uri, run_id FROM current_images").to_pylist()
    assert {row["run_id"] for row in shown} == {runs[0].run_id}
    assert len(shown) == 8
    assert Ledger(output).open_runs() == []


class Doomed(MemoryFileSystem):
    """Memory; the process dies right before it writes a file whose name holds the first of `deaths`."""

    protocol = "doomed"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    deaths: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("doomed://", "memory://", 1)))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if self.deaths and self.deaths[0] in path:
            self.deaths.pop(0)
            raise Killed
        super().pipe_file(path, value, mode, **options)


fsspec.register_implementation("doomed", Doomed, clobber=True)


def test_another_policy_judges_what_is_stored(nights: Nights) -> None:
    nights.spend()
    summary = nights.spend(**{"job.policy.score_threshold": 0.9})
    assert summary["steps"]["refilter"]["num_labelled"] == 8
    assert summary["steps"]["label"]["num_labelled"] == 0
    assert not nights.bucket.ask("SELECT * FROM current_detections WHERE score < 0.9")


def test_a_run_of_an_earlier_policy_is_finished_under_it_and_then_judged(nights: Nights) -> None:
    nights.runner = DiesAfter(Hardware("cpu", 1))
    with pytest.raises(Killed):
        nights.spend()
    nights.runner = InlineRunner(Hardware("cpu", 1))
    other = {"job.policy.score_threshold": 0.9}
    short = nights.spend(**other, **{"job.limits.max_hours": 1e-9})
    assert [short["steps"][name].get("status") for name in ("finish", "refilter", "label")] == [
        "partial",
        None,
        "partial",
    ]
    summary = nights.spend(**other)
    steps = summary["steps"]
    assert (steps["finish"]["num_labelled"], steps["refilter"]["num_labelled"], steps["label"]["num_labelled"]) == (
        8,
        8,
        0,
    )
    assert len(nights.bucket.ask("SELECT DISTINCT labelled_at FROM all_images")) <= 8, "nothing was labelled twice"
    assert summary["since_retraining"]["images_accepted"] == steps["finish"]["images_accepted"] > 0
    assert not nights.bucket.ask("SELECT * FROM current_detections WHERE score < 0.9")


def test_a_refilter_that_died_between_two_models_is_ended(nights: Nights) -> None:
    nights.spend()
    promote_twin(nights.registry)
    (nights.bucket.folder / "new.jpg").write_bytes(fresh_scene(3))
    nights.spend(**{"job.plan.relabel_stale": False})
    output = open_store(str(nights.bucket.output), {})
    dying = Fused(output.uri, output.protocol, output.root, output.options, left=[6])
    policy = PolicyConfig(score_threshold=0.9)
    with pytest.raises(KilledWriting):
        refilter(dying, policy, nights.recorder.log)
    assert Ledger(output).complete_runs()[0].policy_digest == policy.digest, "the older model's run is there"
    nights.spend(**{"job.plan.relabel_stale": False, "job.policy.score_threshold": 0.9})
    assert not nights.bucket.ask("SELECT * FROM current_detections WHERE score < 0.9")


def test_what_a_night_leaves_is_known_as_batchdets(nights: Nights) -> None:
    nights.spend()
    folder = nights.bucket.output
    left = [path.relative_to(folder).as_posix() for path in (folder / "nights").rglob("*") if path.is_file()]
    assert len(left) > 8
    assert all(map(is_kept, left))


def test_nights_are_compared_after_their_runs_were_compacted_away(nights: Nights) -> None:
    nights.spend()
    output = open_store(str(nights.bucket.output), {})
    (nights.bucket.folder / "new.jpg").write_bytes(fresh_scene(3))
    nights.spend()
    done = compact(output, "current", nights.recorder.log)
    remove(output, done.superseded, timedelta(0))
    for seed in (4, 5):
        (nights.bucket.folder / f"more{seed}.jpg").write_bytes(fresh_scene(seed))
        images = nights.spend()["steps"]["changes"]["images"]
        assert (images["new"], images["relabelled"]) == (1, 0)


def test_every_run_of_a_night_is_audited(nights: Nights) -> None:
    nights.spend(**{"job.limits.max_hours": 1e-9})

    class Damages(InlineRunner):
        """Loses a file of the run of last night once it is whole."""

        def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
            super().run(context, shard_ids, progress)
            first = sorted((nights.bucket.output / "detections").glob("run_id=*"))[0]
            if context.plan.run_id != first.name.removeprefix("run_id="):
                (first / "shard-00000.parquet").unlink()

    nights.runner = Damages(Hardware("cpu", 1))
    (nights.bucket.folder / "new.jpg").write_bytes(fresh_scene(3))
    summary = nights.spend()
    assert (summary["exit_code"], len(summary["steps"]["label"]["runs"])) == (3, 2)
    assert summary["steps"]["label"]["runs"][0] in summary["error"]


TELLS = {"notify": {"url_env": "HOOK", "format": "json", "timeout_s": 5}}


def test_somebody_is_told_how_each_night_ended(nights: Nights, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", hook.url)
    nights.fields = TELLS
    short = nights.spend(**{"job.limits.max_hours": 1e-9})
    nights.runner = Fails(Hardware("cpu", 1))
    failed = nights.again(hours_later=1)
    nights.runner = Bug(Hardware("cpu", 1))
    with pytest.raises(ZeroDivisionError):
        nights.again(hours_later=2)
    nights.runner = InlineRunner(Hardware("cpu", 1))
    done = nights.again(hours_later=3)
    nights.again(hours_later=4)
    told = [json.loads(body) for body in hook.bodies]
    assert [told[place] for place in (0, 1, 3)] == [short, failed, done]
    assert (told[2]["exit_code"], told[2]["error"]) == (1, "broke off")
    assert [one["exit_code"] for one in told] == [0, 1, 1, 0], "and nobody of a night that was done"


def test_an_output_that_cannot_be_written_is_a_mistake_of_the_job(
    nights: Nights, hook: Hook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOOK", hook.url)
    nights.fields = TELLS | {"job.output": str(tmp_path / "file" / "labels")}
    with pytest.raises(OutputError, match=r"file/labels.*: not a directory") as caught:
        nights.spend()
    assert caught.value.exit_code == 2
    assert json.loads(hook.bodies[0])["error"] == str(caught.value)


def test_a_webhook_that_is_gone_fails_no_night(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "http://127.0.0.1:1/hush-hush")
    assert nights.spend(**TELLS)["exit_code"] == 0
    (line,) = [line for line in nights.recorder.lines if line.startswith("webhook ")]
    assert line.startswith("webhook http://127.0.0.1/…: cannot connect")
    monkeypatch.delenv("HOOK")
    with pytest.raises(ConfigError, match="the environment has no HOOK"):
        nights.spend(**TELLS)


def test_a_model_that_vanished_ends_the_night_and_the_same_night_goes_on(nights: Nights, tmp_path: Path) -> None:
    nights.spend()
    nights.registry.rename(tmp_path / "elsewhere")
    (nights.bucket.folder / "new.jpg").write_bytes(fresh_scene(3))
    summary = nights.spend()
    assert summary["exit_code"] == 2
    assert str(nights.registry) in summary["error"]
    assert "\n" not in summary["error"]
    assert len(nights.bucket.ask("SELECT run_id FROM runs")) == 1
    (tmp_path / "elsewhere").rename(nights.registry)
    assert nights.again()["steps"]["label"]["num_labelled"] == 1


@pytest.mark.parametrize("step", ["label", "summary"])
def test_what_a_night_left_is_damaged_and_named(nights: Nights, step: str) -> None:
    nights.spend(**{"job.limits.max_hours": 1e-9})
    damaged = nights.bucket.output / "nights" / "2026-03-02" / f"{step}.json"
    damaged.write_text("{")
    if step == "summary":
        with pytest.raises(OutputError, match=f"{step}.json is damaged"):
            nights.again()
    else:
        assert f"{step}.json is damaged" in nights.again()["error"]
    damaged.unlink()
    assert nights.again()["steps"]["label"]["status"] == "complete"


class Bug(InlineRunner):
    """A mistake of ours."""

    def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
        raise ZeroDivisionError


def test_a_broken_listing_ends_the_night_and_changes_nothing(nights: Nights) -> None:
    nights.spend()
    for number in range(6):
        picture(nights.bucket, number).unlink()
    summary = nights.spend()
    assert summary["exit_code"] == 2
    assert "no longer listed" in summary["error"]
    assert len(nights.bucket.current()) == 8


def test_an_alarm_is_told_and_nothing_is_learned_from_that_night(nights: Nights, tmp_path: Path) -> None:
    nights.fields = retraining(nights, tmp_path, every_days=1) | {
        "diff.alarms": {"max_deleted_fraction": 0.1, "min_images": 1}
    }
    nights.spend()
    picture(nights.bucket, 0).unlink()
    summary = nights.spend()
    assert summary["exit_code"] == 3
    assert summary["steps"]["changes"]["alarms"][0]["name"] == "max_deleted_fraction"
    assert not nights.trained
    assert any(line.startswith("changes: alarm: ") for line in lines(summary))


def test_a_student_is_trained_when_due_and_what_it_makes_stale_is_labelled_again(
    nights: Nights, tmp_path: Path
) -> None:
    nights.fields = retraining(nights, tmp_path, every_days=2)
    assert [nights.spend()["steps"]["retrain"] for _ in range(2)] == [{"skipped": "not due"}] * 2
    summary = nights.spend()
    assert summary["exit_code"] == 0
    assert summary["steps"]["retrain"]["promoted"]
    assert summary["steps"]["relabel"]["classes"]["num_stale"] == 8
    assert summary["steps"]["relabel_audit"]["passed"]
    assert [job.output for job in nights.trained] == [f"{tmp_path}/trainings/{summary['night']}"]
    after = nights.spend()
    assert after["steps"]["retrain"] == {"skipped": "not due"}
    assert after["steps"]["label"]["num_unchanged"] == 8
    assert after["steps"]["changes"]["run_before"], "what the student changed is told the next night"


def test_a_night_that_begins_some_seconds_early_is_a_day_later_all_the_same(nights: Nights, tmp_path: Path) -> None:
    nights.fields = retraining(nights, tmp_path, every_days=1)
    nights.spend()
    nights.day += 1
    assert nights.again(hours_later=-2 / 3600)["steps"]["retrain"]["why"] == "1 days since the last"


def test_enough_new_images_make_a_student_due(nights: Nights, tmp_path: Path) -> None:
    nights.fields = retraining(nights, tmp_path, every_days=None, after_accepted=10, relabel=False)
    nights.promotes = False
    nights.spend()
    for seed in range(20, 24):
        (nights.bucket.folder / f"{seed}.jpg").write_bytes(fresh_scene(seed))
    summary = nights.spend()
    assert (summary["exit_code"], len(nights.trained)) == (3, 1)
    assert summary["error"].endswith("is not promoted: mAP fell")
    assert nights.again()["exit_code"] == 3, "told again, not trained again"
    assert len(nights.trained) == 1
    assert nights.spend()["since_retraining"]["images_accepted"] == 0


def test_a_night_beside_another_run_is_refused_and_leaves_nothing(nights: Nights) -> None:
    output = open_store(str(nights.bucket.output), {})
    nights.spend()
    refused: list[BatchdetError] = []

    def other() -> None:
        try:
            nights.spend()
        except OutputHeldError as error:
            refused.append(error)

    with held(output, "label"):
        run_in_thread(other)
    assert [error.exit_code for error in refused] == [75]
    assert not (nights.bucket.output / "nights" / "2026-03-03").exists()


def run_in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_job_and_its_registry_are_one(nights: Nights, tmp_path: Path) -> None:
    nights.fields = retraining(nights, tmp_path)
    nights.fields["retrain"]["train"]["registry"] = str(tmp_path / "elsewhere")
    with pytest.raises(BatchdetError, match="a promoted student never labels"):
        nights.spend()
