"""Every part of the benchmark runs and says what it should; notes and goals fit together. No second is judged here."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarks import goals
from tests.benchmarks.__main__ import PARTS, main
from tests.benchmarks.contenders import contenders, read_variants
from tests.benchmarks.report import print_results, ratios, read_results, spread

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    """A benchmark as a person starts it; what it prints."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_detections_equal_those_of_the_recipe() -> None:
    said = run("tests.benchmarks.end_to_end", "--quick")
    assert said.count(": the same;") == 4
    assert "waiting for pixels" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["diff", "one_core", "plan", "scale"])
def test_a_part_runs_and_leaves_a_note(name: str, tmp_path: Path) -> None:
    said = run("tests.benchmarks", name, "--quick", "--to", str(tmp_path))
    (note,) = tmp_path.iterdir()
    assert note.name.startswith(f"{name}_")
    assert said.partition("\n")[2] in note.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gpu_script_agrees_with_stock_where_there_is_no_gpu(tmp_path: Path) -> None:
    model = "--model=ssdlite320_mobilenet_v3_large"
    said = run("tests.benchmarks.gpu", "--device=cpu", "--quick", "--threads=1", f"--to={tmp_path}", model)
    assert said.count(": the same;") == 1
    (note,) = tmp_path.iterdir()
    assert said in note.read_text()
    assert len(read_results(said)) == 2


def test_every_part_is_there() -> None:
    for part in PARTS.values():
        assert find_spec(f"tests.benchmarks.{part.module}"), part


def test_a_part_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["one_core", "two_cores"])
    assert "no part two_cores" in capsys.readouterr().err


def test_numbers_are_read_back_from_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    print("| a | table |")
    print_results({"a / b": 6.54321, "many": 7e6})
    print("text\n")
    print_results({"more": 0.05})
    assert read_results(capsys.readouterr().out) == {"a / b": 6.543, "many": 7e6, "more": 0.05}


def test_a_spread_is_the_median_between_least_and_greatest() -> None:
    assert spread(ratios([6.0, 2.0, 9.0], [2.0, 2.0, 2.0]), ".1f", "×") == "3.0× (1.0–4.5)"
    assert spread([3.14159]) == "3.14"


def test_goals_are_met_missed_or_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def note(day: str, **numbers: float) -> None:
        print_results(numbers)
        (tmp_path / f"plan_2-core_{day}.md").write_text(capsys.readouterr().out)

    note("2026-01-02", **{"keys a second": 600_000.0})
    note("2026-01-01", **{"keys a second": 1.0, "peak MiB": 900.0})
    assert goals.show(tmp_path) == 0, "the newer note counts, and what only the older has"
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    verdicts = {row[0].removeprefix("| "): row[-1].removesuffix(" |") for row in rows[2:] if len(row) > 1}
    assert verdicts["plan, keys/s a core"] == verdicts["plan, MiB for ten million keys"] == "met"
    assert verdicts["RoI heads"] == "not measured"
    note("2026-01-03", **{"peak MiB": 2000.0})
    assert goals.show(tmp_path) == 3
    assert "| 2,000 |  | missed |" in capsys.readouterr().out


def test_end_to_end_prints_what_the_goals_ask_for(tmp_path: Path) -> None:
    names = {one.name for one in contenders(tmp_path / "w", 2, read_variants(["fast:reading.decode=fast"]))}
    assert {goals.RECIPE, goals.TUNED, goals.OURS, goals.FAST} <= names


def test_settings_of_a_variant_reach_the_command(tmp_path: Path) -> None:
    variants = read_variants(["fast:reading.decode=fast,model.backend=torch"])
    command = contenders(tmp_path / "w", 2, variants)[-1].command(tmp_path / "images", tmp_path / "out")
    assert {"--set=reading.decode=fast", "--set=model.backend=torch"} <= set(command)
