"""The harness of the benchmarks: targets, table, and a process of its own for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.harness import Row, render_table, run_benchmark, write_rows


@pytest.mark.parametrize(
    ("value", "ratio", "target", "is_met"),
    [
        (0.19, None, "value < 0.2", True),
        (0.2, None, "value < 0.2", False),
        (5.0, 1.05, "ratio <= 1.05", True),
        (0.004, 120.0, "value < 0.005 and ratio >= 100", True),
        (0.004, 90.0, "value < 0.005 and ratio >= 100", False),
    ],
)
def test_target(value: float, ratio: float | None, target: str, is_met: bool) -> None:
    assert Row("x", value, None, ratio, target).is_met is is_met


def test_target_that_cannot_be_read() -> None:
    row = Row("x", 1.0, None, None, "fast")
    with pytest.raises(ValueError, match="'fast' is no target: write for example"):
        _ = row.is_met


def test_target_for_a_missing_ratio() -> None:
    row = Row("x", 1.0, None, None, "ratio < 2")
    with pytest.raises(ValueError, match="x has a target for its ratio, but no ratio"):
        _ = row.is_met


def test_table() -> None:
    table = render_table(
        [Row("--help", 0.1234, None, None, "value < 0.2"), Row("steps", 12345.6, 10000.0, 1.23456, "ratio <= 1.05", "")]
    )
    assert table.splitlines() == [
        "benchmark  measured  baseline  ratio  target",
        "------------------------------------------------------------",
        "--help     0.123 s   -         -      value < 0.2    met",
        "steps      12346     10000     1.23   ratio <= 1.05  NOT MET",
    ]


def test_unknown_benchmark_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["speed"]) == 2
    assert "Unknown benchmark speed. There are: startup, run_time" in capsys.readouterr().err


@pytest.fixture
def small_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a benchmark that takes no time."""
    import benchmarks

    (tmp_path / "small.py").write_text(
        "from benchmarks.harness import Row\n"
        "def main():\n"
        "    print('noise')\n"
        "    return [Row('small', 1.0, 2.0, 0.5, 'ratio <= 1')]\n"
    )
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    return tmp_path


def test_rows_travel_as_json(small_benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = small_benchmark / "rows.json"
    write_rows("small", result)
    assert result.read_text() == (
        '[{"name": "small", "value": 1.0, "baseline": 2.0, "ratio": 0.5, "target": "ratio <= 1", "unit": "s"}]'
    )
    assert capsys.readouterr().out == "noise\n"


def test_failing_benchmark_is_named() -> None:
    with pytest.raises(RuntimeError, match="benchmark missing ended with exit code 1"):
        run_benchmark("missing")
