"""The benchmark of submissions works, at a size that says nothing about speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.azureml_submission import compare
from health_ml.azure.client import WorkspaceName
from tests.azureml.service import AzureML


def test_benchmark_measures_something_in_every_row(
    signed_in: AzureML, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = signed_in.workspace
    workspace = WorkspaceName(place.subscription_id, place.resource_group, place.name)
    rows = compare(workspace, tmp_path, count=3, large_bytes=1_000_000)
    assert [row.name for row in rows] == [
        "submit 3 files",
        "submit 3 files, unchanged",
        "submit 3 files, one changed",
        "submit 1 MB",
    ]
    assert all(row.baseline is not None and row.baseline > 0 for row in rows)
    assert all(isinstance(row.is_met, bool) for row in rows)
