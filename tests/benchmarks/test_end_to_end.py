"""The benchmark itself runs, and batchdet's detections are the recipe's."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_detections_equal_those_of_the_recipe() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.end_to_end", "--quick"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": the same;") == 3
