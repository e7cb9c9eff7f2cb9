"""The fixtures of the stand-in; ``from tests.azureml.fixtures import *`` gives them to tests in other folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.azureml.azurite import AzuriteMissingError
from tests.azureml.service import AzureML, start_stand_in

__all__ = ["azureml", "azureml_process"]


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
