from __future__ import annotations

import json
from pathlib import Path

import pytest

from health_ml.azure.client import WorkspaceName, find_workspace
from health_ml.errors import WorkspaceError

HERE = WorkspaceName("sub", "group", "ws")
HIML = {"HIML_SUBSCRIPTION_ID": "s2", "HIML_RESOURCE_GROUP": "g2", "HIML_WORKSPACE_NAME": "w2"}
AZURE = {"AZURE_SUBSCRIPTION_ID": "s3", "AZURE_RESOURCE_GROUP": "g3", "AZURE_WORKSPACE_NAME": "w3"}
JOB = {"AZUREML_ARM_SUBSCRIPTION": "s4", "AZUREML_ARM_RESOURCEGROUP": "g4", "AZUREML_ARM_WORKSPACE_NAME": "w4"}


def write_config(folder: Path, workspace: WorkspaceName = HERE, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("subscription_id", "resource_group", "workspace_name")
    values = (workspace.subscription_id, workspace.resource_group, workspace.name)
    (folder / name).write_text(json.dumps(dict(zip(keys, values, strict=True))))
    return folder / name


def find(folder: Path, *, config_path: Path | None = None, **environ: str) -> WorkspaceName:
    return find_workspace(config_path=config_path, start_directory=folder, environ=environ)


def test_the_nearest_file_wins_over_variables(tmp_path: Path) -> None:
    below = tmp_path / "project" / "src"
    below.mkdir(parents=True)
    write_config(tmp_path, WorkspaceName("far", "far", "far"))
    assert find(below, **HIML).name == "far"
    write_config(tmp_path / "project" / ".azureml")
    assert find(below, **HIML, **AZURE) == HERE


def test_the_given_file_wins_over_all(tmp_path: Path) -> None:
    write_config(tmp_path, WorkspaceName("near", "near", "near"))
    given = write_config(tmp_path / "other", name="mine.json")
    assert find(tmp_path, config_path=Path("other/mine.json"), **JOB) == HERE
    assert find(tmp_path, config_path=given, **HIML) == HERE
    write_config(tmp_path / "other", WorkspaceName("folder", "folder", "folder"))
    assert find(tmp_path, config_path=given.parent).name == "folder"


def test_a_job_is_in_its_own_workspace(tmp_path: Path) -> None:
    write_config(tmp_path)
    assert find(tmp_path, **JOB, **HIML).name == "w4"


def test_variables_in_order(tmp_path: Path) -> None:
    assert find(tmp_path, **HIML, **AZURE).name == "w2"
    assert find(tmp_path, **{**HIML, "HIML_WORKSPACE_NAME": ""}, **AZURE).name == "w3"


def test_the_config_of_another_program_is_passed_over(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text('{"hidden_size": 768}')
    write_config(tmp_path)
    assert find(project) == HERE


def test_a_file_with_the_address_of_the_workspace(tmp_path: Path) -> None:
    scope = (
        f"/subscriptions/{HERE.subscription_id}/resourcegroups/{HERE.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{HERE.name}"
    )
    (tmp_path / "config.json").write_text(json.dumps({"Scope": scope}))
    assert find(tmp_path) == HERE
    (tmp_path / "config.json").write_text(json.dumps({"Scope": "/subscriptions/x"}))
    with pytest.raises(WorkspaceError, match="does not say subscription_id, resource_group and workspace_name"):
        find(tmp_path)


def test_nothing_names_a_workspace(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"no config\.json .* are not set") as caught:
        find(tmp_path)
    assert "--workspace_config_path" in caught.value.hint
    with pytest.raises(WorkspaceError, match="HIML_RESOURCE_GROUP and HIML_WORKSPACE_NAME missing beside HIML_SUBSC"):
        find(tmp_path, HIML_SUBSCRIPTION_ID="s")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ('{"subscription_id": "s"}', "does not say resource_group and workspace_name"),
        ('{"subscription_id": "s", "resource_group": "", "workspace_name": " "}', "resource_group and workspace_name"),
        (
            '{"subscription_id": "s", "resource_group": null, "workspace_name": 3}',
            "resource_group is null and workspace_name is 3, which is no text",
        ),
    ],
)
def test_a_file_that_says_too_little(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WorkspaceError, match=message) as caught:
        find(tmp_path, **HIML)
    assert str(tmp_path / "config.json") in caught.value.message


def test_a_given_file_that_is_not_there(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(WorkspaceError, match=r"absent\.json \(--workspace_config_path\) cannot be read: No such file"):
        find(tmp_path, config_path=Path("absent.json"))
