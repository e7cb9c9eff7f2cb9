"""``python -m benchmarks [name …]`` runs the benchmarks and prints one table; without a name it runs all of them."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import BENCHMARKS, Row, render_table, run_benchmark


def main(names: list[str]) -> int:
    """Returns 0 if every target was met, 1 if one was not or a benchmark failed, 2 for an unknown name."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"Unknown benchmark {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    rows: list[Row] = []
    failures: list[str] = []
    for name in names or BENCHMARKS:
        print(f"running {name} …", file=sys.stderr, flush=True)
        try:
            rows.extend(run_benchmark(name))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failures.append(str(error))
    print(render_table(rows))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 0 if not failures and all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
