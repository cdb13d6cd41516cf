"""The demo's retraining: a student of few gold and many pseudo-labels beats its teacher, and gold alone does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from batchdet.demo.shifted import NUM_GOLD, STEPS, training
from batchdet.storage.filesystem import open_store
from tests.servers.s3 import ROOT


def test_student_and_control_differ_in_the_pseudo_labels_only(tmp_path: Path) -> None:
    root = open_store(str(tmp_path), {})
    student, control = training(root, "student"), training(root, "gold-only", source=None)
    assert student.source is not None and control.source is None
    same = {"output", "registry", "source"}
    assert student.model_dump(exclude=same) == control.model_dump(exclude=same)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_student_beats_its_teacher_by_five_points(tmp_path: Path) -> None:
    """As a person starts it: Ray Train's own warnings are nobody's errors there."""
    command = [sys.executable, "-m", "batchdet", "demo", "--retrain", "--json", "--dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    teacher, student, control = (document[name]["map"] for name in ("teacher", "student", "gold_only"))
    assert student >= teacher + 0.05
    assert student >= control + 0.02
    assert document["promoted"] is True
    assert document["num_gold"] == NUM_GOLD
    assert document["num_pseudo"] >= 150
    lines = (tmp_path / "retrain" / "student" / "steps").glob("*.jsonl")
    assert sum(len(file.read_text().splitlines()) for file in lines) == STEPS
