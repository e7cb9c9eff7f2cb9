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
        ("mysql+pymysql://u:p@h/d", {}, "mysql+pymysql://u:p@h/d"),
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


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            "htp:/foo",
            r"--tracking_uri=htp:/foo: MLflow has no store of the kind 'htp'\. Did you mean 'http' or 'https'\?",
        ),
        ("s3://bucket/x", r"no store of the kind 's3'\. Give a server"),
        ("localhost:5000", r"no store of the kind 'localhost'\. Give a server \(https://…\)"),
    ],
)
def test_what_no_store_is_reached_by_is_refused(given: str, text: str) -> None:
    with pytest.raises(ArgumentsError, match=text):
        resolve_tracking_uri(given, environ={}, project_root=ROOT)


def test_stores_of_installed_plugins_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin-1.0.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text("[mlflow.tracking_store]\nmystore = plugin:Store\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_tracking_uri("mystore://x", environ={}, project_root=ROOT) == "mystore://x"
