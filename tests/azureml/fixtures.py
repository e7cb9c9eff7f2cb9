"""The fixtures of the stand-in; ``from tests.azureml.fixtures import *`` gives them to tests in other folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.azureml.azurite import AzuriteMissingError
from tests.azureml.service import AzureML, start_stand_in

__all__ = ["azureml", "azureml_process", "project", "signed_in"]


@pytest.fixture(scope="session")
def azureml_process() -> Iterator[AzureML]:
    """Returns the stand-in of this test session; tests use ``azureml``, which starts each of them afresh."""
    try:
        service, folder = start_stand_in()
    except AzuriteMissingError as error:
        pytest.skip(str(error))
    try:
        yield service
    finally:
        service.stop()
        folder.cleanup()


@pytest.fixture
def azureml(azureml_process: AzureML) -> Iterator[AzureML]:
    """Returns the stand-in, and fails a test that sent a wrong body or asked for a host that is none of Azure's."""
    azureml_process.start_test()
    yield azureml_process
    problems = azureml_process.problems()
    refused = azureml_process.refused()
    azureml_process.start_test()
    assert not problems, f"Request bodies against the type definitions: {problems}"
    assert not refused, f"Hosts that the proxy refused: {refused}"


@pytest.fixture
def signed_in(azureml: AzureML, monkeypatch: pytest.MonkeyPatch) -> AzureML:
    """Returns the stand-in, which is Azure for this process, signed in as a service principal."""
    for name, value in azureml.environment.items():
        monkeypatch.setenv(name, value)
    return azureml


@pytest.fixture
def project(signed_in: AzureML, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the working directory, with the config.json of the workspace and nothing else; the cache is beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    folder = tmp_path / "a project"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(signed_in.config))
    monkeypatch.chdir(folder)
    return folder
