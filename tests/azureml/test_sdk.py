"""The unmodified SDK works with the stand-in: assets, compute, submission."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.azureml.service import AzureML
from tests.azureml.state import Compute

Script = Callable[..., Any]


def test_compute_clusters_are_listed_and_found(azureml: AzureML, client: Any) -> None:
    from azure.core.exceptions import ResourceNotFoundError

    assert [cluster.name for cluster in client.compute.list()] == ["gpu", "cpu", "low-priority"]
    assert client.compute.get("low-priority").tier == "low_priority"
    with pytest.raises(ResourceNotFoundError, match="compute nothing"):
        client.compute.get("nothing")


def test_long_lists_come_in_pages(azureml: AzureML, client: Any) -> None:
    azureml.cloud.page_size = 2
    azureml.state.computes |= {f"more-{index}": Compute(f"more-{index}") for index in range(4)}
    assert len(list(client.compute.list())) == 7
    assert len(azureml.received("GET", "*/computes")) == 4


def test_a_data_asset_from_a_folder_is_uploaded_once(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    from azure.ai.ml.entities import Data

    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.txt").write_text(f"image {index}")
    created = client.data.create_or_update(Data(name="images", path=str(folder), type="uri_folder"))
    assert created.version == "1"
    assert created.path.startswith("azureml://subscriptions/")
    assert created.path.endswith("/images/")
    assert len([name for name in azureml.azurite.names(azureml.workspace.default_container) if "image" in name]) == 3
    assert client.data.get("images", label="latest").version == "1"
    before = len(azureml.blob_requests("PUT"))
    assert client.data.create_or_update(Data(name="images", path=str(folder), type="uri_folder")).version == "2"
    assert len(azureml.blob_requests("PUT")) == before


def test_an_unknown_data_asset_is_not_found(client: Any) -> None:
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(ResourceNotFoundError, match=r"Data version no-data:7 \(dataContainerName:version\) not found"):
        client.data.get("no-data", "7")


def test_an_environment_comes_back_with_its_conda_file_as_json(azureml: AzureML, client: Any, environment: Any) -> None:
    environment.name, environment.version = "training", "3"
    client.environments.create_or_update(environment)
    stored = azureml.state.environments["training", "3"]["properties"]
    assert stored["condaFile"].startswith('{\n  "dependencies": [\n    "python=3.11"')
    assert stored["properties"] == {"azureml.labels": "latest"}
    assert client.environments.get("training", version="3").image == environment.image


def test_a_command_job_arrives_complete(azureml: AzureML, client: Any, script: Script) -> None:
    from azure.ai.ml import Input, MpiDistribution

    job = script(
        "print('hello')",
        experiment_name="tests",
        display_name="a display name",
        tags={"tag": "value"},
        environment_variables={"NAME": "value"},
        instance_count=2,
        distribution=MpiDistribution(process_count_per_instance=1),
        shm_size="16g",
        timeout=3600,
        inputs={"data": Input(path="azureml://datastores/workspaceblobstore/paths/some/", type="uri_folder")},
    )
    created = client.jobs.create_or_update(job)
    assert created.status == "Starting"
    body = azureml.state.jobs[created.name].body
    assert body["resources"]["instanceCount"] == 2
    assert body["resources"]["shmSize"] == "16g"
    assert body["limits"]["timeout"] == "PT1H"
    assert body["distribution"] == {"distributionType": "Mpi", "processCountPerInstance": 1}
    assert body["environmentVariables"] == {"NAME": "value"}
    assert [request.status for request in azureml.received("PUT", "*/jobs/*")] == [201]
    assert azureml.received("PUT", "*/jobs/*")[0].query["api-version"] == azureml.state.jobs[created.name].api_version


def test_unchanged_code_is_not_uploaded_again(azureml: AzureML, client: Any, script: Script) -> None:
    first = client.jobs.create_or_update(script("print('the same')"))
    uploads = len(azureml.blob_requests("PUT"))
    second = client.jobs.create_or_update(script("print('the same')"))
    assert uploads > 0
    assert len(azureml.blob_requests("PUT")) == uploads
    jobs = azureml.state.jobs
    assert jobs[first.name].body["codeId"] == jobs[second.name].body["codeId"]


def test_an_unknown_cluster_is_refused_with_the_job(client: Any, azureml: AzureML, script: Script) -> None:
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match="Unknown compute target 'nowhere'") as caught:
        client.jobs.create_or_update(script("print('hello')", compute="nowhere"))
    assert caught.value.status_code == 400
    assert caught.value.reason == "Bad Request"


def test_jobs_are_listed_renamed_and_archived(azureml: AzureML, client: Any, script: Script) -> None:
    azureml.cloud.page_size = 1
    names = [client.jobs.create_or_update(script("print(1)")).name for _ in range(2)]
    listed = [job.name for job in client.jobs.list()]
    assert listed[:2] == names[::-1]
    client.jobs.archive(names[0])
    assert names[0] not in [job.name for job in client.jobs.list()]


def test_a_job_that_waits_is_cancelled(azureml: AzureML, client: Any, script: Script) -> None:
    name = client.jobs.create_or_update(script("print('never')")).name
    client.jobs.begin_cancel(name).result()
    assert client.jobs.get(name).status == "Canceled"
    assert azureml.run_pending_jobs() == []


def test_a_finished_job_cannot_be_cancelled(client: Any, azureml: AzureML, script: Script) -> None:
    from azure.core.exceptions import HttpResponseError

    name = client.jobs.create_or_update(script("print('never')")).name
    client.jobs.begin_cancel(name).result()
    with pytest.raises(HttpResponseError, match="its status is Canceled"):
        client.jobs.begin_cancel(name)


def test_a_sweep_job_comes_back_as_the_service_writes_it(azureml: AzureML, client: Any, script: Script) -> None:
    from azure.ai.ml.sweep import Choice

    job = script("print()", command="python main.py ${{inputs.seed}}", inputs={"seed": 1})
    sweep = job(seed=Choice([1, 2, 3])).sweep(
        sampling_algorithm="grid", primary_metric="loss", goal="minimize", max_total_trials=3
    )
    sweep.compute = "gpu"
    created = client.jobs.create_or_update(sweep)
    sent = azureml.state.jobs[created.name].body
    assert sent["searchSpace"] == {"seed": ["choice", [[1, 2, 3]]]}
    answer = client.jobs.get(created.name)
    assert answer.objective.goal == "minimize"
    assert answer.tags["_aml_system_max_total_jobs"] == "3"
