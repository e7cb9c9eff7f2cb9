"""The stand-in answers as the real service did in recorded exchanges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.azureml.contract import MISSING, contract_folder
from tests.azureml.service import AzureML
from tests.azureml.web import Request

Find = Callable[..., dict[str, Any]]

LEFT_OPEN = frozenset(
    {
        # Who changed it last and when is not always there.
        "lastModifiedAt",
        "lastModifiedBy",
        "lastModifiedByType",
        # Facts of the recorded cluster, job or code.
        "_aml_system_platform_config",
        "user_agent",
        "enableBatchPrivateLink",
        "provisioningWarnings",
        # What a later api-version added or dropped.
        "autoDeleteSetting",
        "intellectualProperty",
        "stage",
    }
)
"""Names that may be there or not."""

SINCE_2022 = frozenset(
    {"notificationSetting", "pathOnCompute", "assetName", "assetVersion", "nodes", "maxInstanceCount", "locations",
     "secretsConfiguration", "queueSettings", "ContentSnapshotId"}
)  # fmt: skip
"""Names that the service added after the recordings of 2022."""


@pytest.fixture(scope="module")
def folder() -> Path:
    found = contract_folder()
    if found is None:
        pytest.skip(MISSING)
    return found / "recordings"


@pytest.fixture
def find(folder: Path) -> Find:
    """Returns a function that finds one exchange of a recording by its method and the end of its path."""

    def entry(recording: str, method: str, ending: str) -> dict[str, Any]:
        entries = json.loads((folder / recording).read_text())["Entries"]
        found: dict[str, Any] = next(
            entry
            for entry in entries
            if entry["RequestMethod"] == method and entry["RequestUri"].partition("?")[0].endswith(ending)
        )
        return found

    return entry


def _ask(azureml: AzureML, exchange: dict[str, Any], *, body: Any = None) -> tuple[int, Any]:
    """Returns status and body of the stand-in's answer to a recorded request, moved to its own workspace."""
    address, _, query = exchange["RequestUri"].partition("?")
    path = azureml.workspace.prefix + address.partition("/workspaces/00000")[2]
    content = json.dumps(body or exchange["RequestBody"]).encode() if exchange["RequestBody"] else b""
    request = Request(
        method=exchange["RequestMethod"],
        host="management.azure.com",
        path=path,
        query=dict(part.split("=", 1) for part in query.split("&")),
        headers={"authorization": f"Bearer {azureml.token()}"},
        body=content,
        target=path,
    )
    answer = azureml.cloud.respond(request)
    return answer.status, answer.body


def _differences(answer: Any, recorded: Any, ignored: frozenset[str] = LEFT_OPEN, path: str = "") -> list[str]:
    """Returns where the names or the kinds of values of an answer differ from those of a recorded one."""
    if isinstance(answer, dict) and isinstance(recorded, dict):
        found = [f"{path}.{name} is missing" for name in recorded if name not in answer and name not in ignored]
        found += [f"{path}.{name} is not recorded" for name in answer if name not in recorded and name not in ignored]
        for name in answer:
            if name in recorded and name not in ignored:
                found += _differences(answer[name], recorded[name], ignored, f"{path}.{name}")
        return found
    if type(answer) is not type(recorded):
        return [f"{path} is {answer!r}, recorded is {recorded!r}"]
    return []


def test_code_versions_are_answered_as_recorded(azureml: AzureML, find: Find) -> None:
    recorded = find("code_create_and_get.json", "PUT", "/versions/2")
    body = json.loads(json.dumps(recorded["RequestBody"]))
    body["properties"]["properties"]["hash_version"] = "202208"
    status, answer = _ask(azureml, recorded, body=body)
    assert (status, _differences(answer, recorded["ResponseBody"])) == (201, [])
    pending = find("code_create_and_get.json", "POST", "/startPendingUpload")
    status, answer = _ask(azureml, pending)
    assert (status, _differences(answer, pending["ResponseBody"])) == (200, [])
    assert ":443/" in answer["blobReferenceForConsumption"]["blobUri"]
    assert "sp=rcwl" in answer["blobReferenceForConsumption"]["credential"]["sasUri"]


def test_data_versions_are_answered_as_recorded(azureml: AzureML, find: Find) -> None:
    recorded = find("data_create_uri_folder.json", "PUT", "/versions/1")
    status, answer = _ask(azureml, recorded)
    assert (status, _differences(answer, recorded["ResponseBody"])) == (201, [])
    tail = "/datastores/workspaceblobstore/paths/LocalUpload/00000000000000000000000000000000/tmp_folder/"
    assert answer["properties"]["dataUri"].endswith(tail)


def test_environment_versions_are_answered_as_recorded(azureml: AzureML, find: Find) -> None:
    recorded = find("environment_create_conda.json", "PUT", "/versions/1")
    status, answer = _ask(azureml, recorded)
    expected = recorded["ResponseBody"]
    assert (status, _differences(answer, expected)) == (201, [])
    assert answer["properties"]["condaFile"] == expected["properties"]["condaFile"]


def test_a_missing_data_version_is_answered_as_recorded(azureml: AzureML, find: Find) -> None:
    recorded = find("command_job_builder_2022.json", "GET", "/list_data_v2_test/versions/1")
    status, answer = _ask(azureml, recorded)
    assert (status, answer["error"]["message"]) == (404, recorded["ResponseBody"]["error"]["message"])


def _add_compute_and_code(azureml: AzureML, body: dict[str, Any]) -> None:
    """Makes what a recorded job refers to, as far as the stand-in checks it."""
    from tests.azureml.job_routes import asset_key
    from tests.azureml.state import Compute

    azureml.state.computes["testCompute"] = Compute("testCompute")
    trial = body["properties"].get("trial") or body["properties"]
    key = asset_key("codes", trial.get("codeId") or "")
    if key is not None:
        azureml.state.codes[key] = {"properties": {"codeUri": ""}}


@pytest.mark.parametrize(
    ("recording", "ending"),
    [
        ("sweep_job_await_completion_2026.json", "/jobs/test_910316408761"),
        ("command_job_with_dataset_2022_201.json", "/jobs/test_127966154038"),
    ],
)
def test_jobs_are_answered_as_recorded(azureml: AzureML, find: Find, recording: str, ending: str) -> None:
    recorded = find(recording, "PUT", ending)
    _add_compute_and_code(azureml, recorded["RequestBody"])
    ignored = LEFT_OPEN | (SINCE_2022 if "2022" in recording else frozenset())
    status, answer = _ask(azureml, recorded)
    # Recordings of older api-versions are answered all the same: only the form of the answer is compared.
    azureml.received()[-1].problems.clear()
    assert status == recorded["StatusCode"], answer
    expected = recorded["ResponseBody"]
    assert _differences(answer, expected, ignored) == []
    for name in ("status", "experimentName", "displayName", "jobType"):
        assert answer["properties"][name] == expected["properties"][name]
    if "objective" in expected["properties"]:
        assert answer["properties"]["objective"] == expected["properties"]["objective"]
        assert answer["properties"]["samplingAlgorithm"] == expected["properties"]["samplingAlgorithm"]


@pytest.mark.parametrize("ending", ["/computes/cpu-cluster", "/datastores/workspaceartifactstore"])
def test_compute_and_datastores_are_answered_as_recorded(azureml: AzureML, find: Find, ending: str) -> None:
    from tests.azureml.state import Compute

    azureml.state.computes["cpu-cluster"] = Compute("cpu-cluster")
    recorded = find("pipeline_child_run_download_2026.json", "GET", ending)
    _, answer = _ask(azureml, recorded)
    ignored = LEFT_OPEN | {"systemData", "subscriptionId", "resourceGroup"}
    assert _differences(answer, recorded["ResponseBody"], ignored) == []


def test_runs_are_answered_as_recorded(azureml: AzureML, find: Find) -> None:
    from tests.azureml.history_routes import run_record
    from tests.azureml.state import Job

    recorded = find("pipeline_child_run_download_2026.json", "POST", "/rundata")["ResponseBody"]["runMetadata"]
    body = {"jobType": "Command", "outputs": {"result": {"jobOutputType": "uri_folder"}}}
    job = Job("recorded", body, status="Completed")
    azureml.state.jobs["recorded"] = job
    record = run_record(azureml.cloud, job)
    assert set(record) <= set(recorded)
    assert record["outputs"]["result"]["type"] == recorded["outputs"]["component_out_path_1"]["type"] == "UriFolder"


def test_a_child_is_answered_without_properties(azureml: AzureML, find: Find) -> None:
    from tests.azureml.state import Job

    recorded = find("pipeline_child_run_download_2026.json", "GET", "/jobs/dfe08843-b7f4-4821-ad6d-d299adc2210d")
    name = recorded["ResponseBody"]["name"]
    azureml.state.jobs[name] = Job(name, {"jobType": "Command"}, parent="someone")
    _, answer = _ask(azureml, recorded)
    assert set(answer) == set(recorded["ResponseBody"])
