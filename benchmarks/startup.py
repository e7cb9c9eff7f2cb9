"""What ``himl-runner --help`` and ``--version`` cost, next to a Python that only imports the library of the flags."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import Row

REPEATS = 7
BASELINE = "import param"
COMMAND = "import sys; from health_ml.runner import main; code = main([{flag!r}])"
REPORT = "; import json; json.dump([name for name in {heavy!r} if name in sys.modules], sys.stderr); sys.exit(code)"
HEAVY = ("torch", "pytorch_lightning", "lightning_fabric", "mlflow", "azure", "azureml")


def main() -> list[Row]:
    """Returns the CPU seconds of each command, and how many of the heavy packages it loads."""
    baseline = _cpu_seconds(BASELINE)
    rows = []
    for flag in ("--help", "--version"):
        seconds = _cpu_seconds(COMMAND.format(flag=flag))
        rows.append(Row(f"himl-runner {flag}", seconds, baseline, seconds / baseline, "value < 0.2", "CPU s"))
        loaded = _loaded_by(flag)
        rows.append(Row(f"himl-runner {flag}: heavy packages", len(loaded), None, None, "value < 1", ""))
    return rows


def _cpu_seconds(code: str) -> float:
    """Returns the least CPU seconds of several processes that run the code."""
    return min(_cpu_seconds_once(code) for _ in range(REPEATS))


def _cpu_seconds_once(code: str) -> float:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=_environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{code!r} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def _loaded_by(flag: str) -> list[str]:
    code = (COMMAND + REPORT).format(flag=flag, heavy=HEAVY)
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=_environment()
    )
    loaded: list[str] = json.loads(finished.stderr)
    return loaded


def _environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[1] / "src")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))}


if __name__ == "__main__":
    from benchmarks.harness import render_table

    print(render_table(main()))
