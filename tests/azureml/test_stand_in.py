"""The unmodified SDK works with the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.azureml.service import AzureML


@pytest.fixture
def client(azureml: AzureML, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Returns the SDK's client, signed in with the variables of the stand-in."""
    for name, value in azureml.environment.items():
        monkeypatch.setenv(name, value)
    from azure.ai.ml import MLClient
    from azure.identity import EnvironmentCredential

    workspace = azureml.workspace
    with EnvironmentCredential() as credential:
        yield MLClient(credential, workspace.subscription_id, workspace.resource_group, workspace.name)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text("print('hello')\n")
    return folder


def test_a_command_job_is_submitted(azureml: AzureML, client: Any, code: Path) -> None:
    from azure.ai.ml import command
    from azure.ai.ml.entities import Environment

    conda = code / "environment.yml"
    conda.write_text("name: test\ndependencies:\n- python=3.11\n")
    environment = Environment(image="mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04", conda_file=str(conda))
    job = command(code=str(code), command="python train.py", environment=environment, compute="gpu")
    created = client.jobs.create_or_update(job)
    assert created.status == "Starting"
    assert azureml.state.jobs[created.name].body["command"] == "python train.py"
    assert len(azureml.blob_requests("PUT")) == 3
