from __future__ import annotations

import sys
from pathlib import Path

import pytest

from health_ml.errors import ArgumentsError
from health_ml.records.tracking import resolve_tracking_uri

ROOT = Path("/project")
WORKSPACE = (
    "azureml://eastus.api.azureml.ms/mlflow/v1.0/subscriptions/s/resourceGroups/g/providers/"
    "Microsoft.MachineLearningServices/workspaces/w"
)


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
        (
            f"azureml://eastus.api.azureml.ms/mlflow/v1.0{WORKSPACE}",
            {},
            f"azureml://eastus.api.azureml.ms/mlflow/v1.0{WORKSPACE}",
        ),
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


def test_a_database_whose_driver_is_installed_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pymysql.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = "mysql+pymysql://u:p@h/d"
    assert resolve_tracking_uri(given, environ={}, project_root=ROOT) == given
    sys.modules.pop("pymysql")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("sqlite:///", r"is a folder, and an SQLite database is a file\. Give for example sqlite:////.*/mlflow\.db"),
        ("sqlite:///.", "is a folder"),
        ("sqlite://", r"--tracking_uri=sqlite:// names no file\. Give sqlite:///FILE"),
        ("azureml://foo", r"azureml://foo is not the address of an AzureML workspace\. It is azureml://REGION"),
        ("azureml://", "is not the address of an AzureML workspace"),
        ("http://", r"http:// names no host\. Give one like https://host:5000"),
        ("https:/host/x", "names no host"),
        ("http://host:port", r"http://host:port is no address: Port could not be cast"),
        ("mysql+pymysql://u:hunter22@h/d", r"\*\*\*@h/d: the module pymysql is not installed.*pip install 'pymysql'"),
        ("mysql://h/d", "the module MySQLdb is not installed.*pip install 'mysqlclient'"),
        ("postgresql+nope://h/d", "is no address of a database: Can't load plugin"),
        ("postgresql://h:port/d", "is no address of a database: invalid literal"),
    ],
)
def test_addresses_that_cannot_work_are_refused(tmp_path: Path, given: str, text: str) -> None:
    with pytest.raises(ArgumentsError, match=text) as caught:
        resolve_tracking_uri(given, environ={}, project_root=tmp_path)
    assert "hunter22" not in str(caught.value)


def test_stores_of_installed_plugins_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin-1.0.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text("[mlflow.tracking_store]\nmystore = plugin:Store\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_tracking_uri("mystore://x", environ={}, project_root=ROOT) == "mystore://x"
