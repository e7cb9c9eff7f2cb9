"""Signing in and finding the workspace, with the real SDKs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from health_ml.azure.auth import get_credential
from health_ml.azure.client import WorkspaceName, azure_errors, connect
from health_ml.errors import AuthenticationError, WorkspaceError
from health_ml.planning.sign_in import AuthMethod
from tests.azureml.service import AzureML

SCOPE = "https://management.azure.com/.default"


@pytest.fixture
def here(signed_in: AzureML) -> WorkspaceName:
    workspace = signed_in.workspace
    return WorkspaceName(workspace.subscription_id, workspace.resource_group, workspace.name)


def look(workspace: WorkspaceName) -> Any:
    """Asks for a cluster as every part of health_ml asks for something."""
    credential = get_credential(environ=os.environ)
    client = connect(workspace, environ=os.environ, credential=credential)
    with azure_errors("The cluster cannot be found", workspace, credential=credential):
        return client.compute.get("gpu")


def test_a_service_principal_signs_in_once(here: WorkspaceName, azureml: AzureML) -> None:
    credential = get_credential(environ=os.environ)
    client = connect(here, environ=os.environ, credential=credential)
    assert client.compute.get("gpu").name == "gpu"
    assert [store.name for store in client.datastores.list()] == ["workspaceblobstore", "workspaceartifactstore"]
    assert credential.method is AuthMethod.ENVIRONMENT
    credential.close()


def test_variables_of_hi_ml(here: WorkspaceName, azureml: AzureML) -> None:
    environ = {
        "HIML_TENANT_ID": os.environ["AZURE_TENANT_ID"],
        "HIML_SERVICE_PRINCIPAL_ID": os.environ["AZURE_CLIENT_ID"],
        "HIML_SERVICE_PRINCIPAL_PASSWORD": os.environ["AZURE_CLIENT_SECRET"],
    }
    credential = get_credential(environ=environ)
    assert credential.get_token(SCOPE).token.count(".") == 2
    credential.close()


def test_a_wrong_secret_ends_the_search(here: WorkspaceName) -> None:
    environ = {**os.environ, "AZURE_CLIENT_SECRET": "wrong"}
    with pytest.raises(AuthenticationError, match=r"environment: .*AADSTS7000215") as caught:
        get_credential(environ=environ).get_token(SCOPE)
    assert "azure_cli" not in caught.value.message, "no other identity is taken instead of the configured one"
    assert caught.value.hint.startswith("Correct AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET")


def test_a_device_code_is_shown(here: WorkspaceName) -> None:
    shown: list[str] = []
    credential = get_credential(environ=os.environ, auth="device_code", prompt=shown.append)
    assert credential.get_token(SCOPE).token.count(".") == 2
    assert shown == [
        "To sign in to Azure, open https://microsoft.com/devicelogin in a web browser and enter the code STANDIN."
    ]
    credential.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "elsewhere"}, r"resource group .* has no workspace 'elsewhere'"),
        ({"resource_group": "nothing"}, r"has no resource group 'nothing'"),
        ({"subscription_id": "1-2-3"}, r"there is no subscription 1-2-3"),
    ],
)
def test_a_workspace_that_does_not_exist(here: WorkspaceName, change: dict[str, str], message: str) -> None:
    with pytest.raises(WorkspaceError, match=message):
        look(replace(here, **change))


def test_access_denied_names_tenant_and_subscription(here: WorkspaceName, azureml: AzureML) -> None:
    azureml.misbehave("GET", "*/computes/*", status=403)
    with pytest.raises(WorkspaceError, match="access is denied") as caught:
        look(here)
    assert here.subscription_id in caught.value.message
    assert f"tenant {azureml.workspace.tenant_id}, signed in with environment" in caught.value.message


def test_a_refused_token(here: WorkspaceName, azureml: AzureML) -> None:
    azureml.misbehave("GET", "*/computes/*", status=401, times=-1)
    with pytest.raises(AuthenticationError, match=r"does not accept the sign-in .*subscription") as caught:
        look(here)
    assert "Correct AZURE_TENANT_ID" in caught.value.hint, "it is signed in with a service principal"


def test_no_network(here: WorkspaceName, monkeypatch: pytest.MonkeyPatch, azureml: AzureML) -> None:
    azureml.misbehave("GET", "*/computes/*", close=True, times=-1)
    with pytest.raises(WorkspaceError, match="Azure cannot be reached"):
        look(here)
