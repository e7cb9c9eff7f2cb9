"""The stand-in for AzureML, and the SDK's own client of it, for every test of this folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.azureml.fixtures import azureml, azureml_process, project, signed_in
from tests.azureml.service import AzureML

__all__ = ["azureml", "azureml_process", "project", "signed_in"]

IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04"


@pytest.fixture
def client(signed_in: AzureML) -> Iterator[Any]:
    """Returns the unmodified SDK's client, signed in with the variables of the stand-in."""
    from azure.ai.ml import MLClient
    from azure.identity import EnvironmentCredential

    random.seed()  # the SDK draws the names of jobs, and a training may have set the seed to one that was there before
    workspace = signed_in.workspace
    with EnvironmentCredential() as credential:
        yield MLClient(credential, workspace.subscription_id, workspace.resource_group, workspace.name)


@pytest.fixture
def environment(tmp_path: Path) -> Any:
    """Returns an environment as the SDK describes it."""
    from azure.ai.ml.entities import Environment

    conda = tmp_path / "conda.yml"
    conda.write_text("name: test\ndependencies:\n- python=3.11\n- pip:\n  - himl-runner\n")
    return Environment(image=IMAGE, conda_file=str(conda))


@pytest.fixture
def script(tmp_path: Path, environment: Any) -> Callable[..., Any]:
    """Returns a function from the text of a script to a command that runs it."""
    from azure.ai.ml import command

    folder = tmp_path / "code"
    folder.mkdir()

    def make(text: str, **options: Any) -> Any:
        (folder / "main.py").write_text(text)
        line = options.pop("command", "python main.py")
        return command(code=str(folder), command=line, environment=environment, **{"compute": "gpu", **options})

    return make
