from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.errors import ArgumentsError
from health_ml.records.tracking import resolve_tracking_uri

ROOT = Path("/project")


@pytest.mark.parametrize(
    ("given", "environ", "resolved"),
    [
        ("", {}, "sqlite:////project/mlflow.db"),
        ("", {"MLFLOW_TRACKING_URI": "https://host"}, "https://host"),
        ("http://other:5000", {"MLFLOW_TRACKING_URI": "https://host"}, "http://other:5000"),
        ("none", {"MLFLOW_TRACKING_URI": "https://host"}, "none"),
        ("", {"MLFLOW_TRACKING_URI": "None"}, "none"),
        ("sqlite:///my.db", {}, "sqlite:////project/my.db"),
        ("sqlite:////data/my.db?x=1", {}, "sqlite:////data/my.db?x=1"),
        ("postgresql://u:p@h/d", {}, "postgresql://u:p@h/d"),
        ("azureml://eastus.api.azureml.ms/x", {}, "azureml://eastus.api.azureml.ms/x"),
        ("databricks", {}, "databricks"),
        ("runs", {"MLFLOW_ALLOW_FILE_STORE": "true"}, "file:///project/runs"),
    ],
)
def test_where_a_run_is_mirrored_to(given: str, environ: dict[str, str], resolved: str) -> None:
    assert resolve_tracking_uri(given, environ=environ, project_root=ROOT) == resolved


def test_folders_are_refused_with_the_way_out() -> None:
    with pytest.raises(ArgumentsError, match=r"--tracking_uri=\./mlruns: .*sqlite:///mlruns\.db.*'none'"):
        resolve_tracking_uri("./mlruns", environ={}, project_root=ROOT)
    with pytest.raises(ArgumentsError, match=r"MLFLOW_TRACKING_URI=file:///a: .*sqlite:////a\.db"):
        resolve_tracking_uri("", environ={"MLFLOW_TRACKING_URI": "file:///a"}, project_root=ROOT)
