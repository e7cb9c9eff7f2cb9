"""What a benchmark returns, how it is run in a process of its own, and the table that comes of it.

A benchmark is a module of this package whose ``main()`` returns a list of :class:`Row`. It measures what it claims
and the baseline in the same run, so that the ratio means the same on every machine.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BENCHMARKS = (
    "startup",
    "run_time",
    "step_time",
    "tracking_down",
    "model_search",
    "checkpoint_progress",
    "snapshot",
    "two_nodes",
    "fan_out",
    "azureml_submission",
)
"""Names of the benchmarks, in the order in which they run."""

TIMEOUT_SECONDS = 900
REPOSITORY = Path(__file__).resolve().parents[1]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"(value|ratio) (<=|>=|<|>) ([0-9.]+)")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    :param name: What was measured.
    :param value: The figure for health_ml.
    :param baseline: The figure for what it is compared with, None if the target is absolute.
    :param ratio: How the two relate, as the target states it, None without a baseline.
    :param target: One or several of ``value`` or ``ratio``, a comparison and a number, joined by ``and``:
        ``ratio <= 1.05 and value < 0.2``.
    :param unit: Unit of value and baseline.
    """

    name: str
    value: float
    baseline: float | None
    ratio: float | None
    target: str
    unit: str = "s"

    @property
    def is_met(self) -> bool:
        """True if all conditions of the target hold.

        :raises ValueError: If the target is not written in the form above, or needs a ratio that is not there.
        """
        return all(self._holds(condition) for condition in self.target.split(" and "))

    def _holds(self, condition: str) -> bool:
        match = _CONDITION.fullmatch(condition.strip())
        if match is None:
            raise ValueError(f"{condition!r} is no target: write for example 'ratio <= 1.05'.")
        left = self.value if match[1] == "value" else self.ratio
        if left is None:
            raise ValueError(f"{self.name} has a target for its ratio, but no ratio.")
        return _COMPARISONS[match[2]](left, float(match[3]))

    def cells(self) -> tuple[str, ...]:
        """Returns the texts of the row in the table."""
        return (
            self.name,
            f"{_figure(self.value)} {self.unit}".strip(),
            f"{_figure(self.baseline)} {self.unit}".strip() if self.baseline is not None else "-",
            _figure(self.ratio) if self.ratio is not None else "-",
            self.target,
            "met" if self.is_met else "NOT MET",
        )


HEADER = ("benchmark", "measured", "baseline", "ratio", "target", "")


def _figure(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def render_table(rows: Sequence[Row]) -> str:
    """Returns the rows as a table of plain text, one line each."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def run_benchmark(name: str) -> list[Row]:
    """Returns what a benchmark measured in a fresh process; its own output goes to standard error.

    :raises RuntimeError: If the benchmark failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result_file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.harness", name, str(result_file)]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        finished = subprocess.run(
            command, cwd=REPOSITORY, stdout=sys.stderr, env=environment, timeout=TIMEOUT_SECONDS, check=False
        )
        if finished.returncode != 0:
            raise RuntimeError(f"benchmark {name} ended with exit code {finished.returncode}")
        return [Row(**values) for values in json.loads(result_file.read_text())]


def write_rows(name: str, result_file: Path) -> None:
    """Runs a benchmark in this process and writes its rows as JSON."""
    module = importlib.import_module(f"benchmarks.{name}")
    rows: list[Row] = module.main()
    result_file.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    write_rows(sys.argv[1], Path(sys.argv[2]))
