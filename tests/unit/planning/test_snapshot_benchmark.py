from __future__ import annotations

from benchmarks.snapshot import main


def test_benchmark_measures_something_in_every_row() -> None:
    rows = main(folders=2, files=3, ignored=5)
    assert [row.name.split(" / ")[0] for row in rows] == [
        "first snapshot of 7 files",
        "unchanged",
        "one file changed",
        "5 ignored files add",
        "store it the first time",
        "store it with one change",
        "unpack it, checked",
    ]
    assert all(row.baseline is not None and row.baseline > 0 for row in rows)
    assert all(isinstance(row.is_met, bool) for row in rows)
