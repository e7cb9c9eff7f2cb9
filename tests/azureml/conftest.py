"""The stand-in for AzureML is there for every test of this folder."""

from __future__ import annotations

from tests.azureml.fixtures import azureml, azureml_process

__all__ = ["azureml", "azureml_process"]
