"""Each way of signing in gets tokens that the stand-in and Azurite accept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.azureml.service import AzureML

Script = Callable[..., Any]
SCOPE = "https://management.azure.com/.default"


@pytest.fixture
def signed_out(azureml: AzureML, monkeypatch: pytest.MonkeyPatch) -> AzureML:
    """Returns the stand-in, for a process that is on the network but has no service principal."""
    for name, value in azureml.environment.items():
        if not name.startswith("AZURE_"):
            monkeypatch.setenv(name, value)
    return azureml


def test_a_device_code_is_approved_by_the_user(signed_out: AzureML) -> None:
    from azure.identity import DeviceCodeCredential

    shown: list[str] = []
    with DeviceCodeCredential(
        tenant_id=signed_out.workspace.tenant_id, prompt_callback=lambda *facts: shown.append(facts[1])
    ) as credential:
        token = credential.get_token(SCOPE).token
    assert shown == ["STANDIN"]
    assert signed_out.cloud.tokens.is_valid(f"Bearer {token}")


def test_a_device_code_that_nobody_approves_runs_out(signed_out: AzureML) -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import DeviceCodeCredential

    signed_out.cloud.is_device_code_approved = False
    with (
        DeviceCodeCredential(
            tenant_id=signed_out.workspace.tenant_id, timeout=2, prompt_callback=lambda *facts: None
        ) as credential,
        pytest.raises(ClientAuthenticationError, match="Timed out waiting for user to authenticate"),
    ):
        credential.get_token(SCOPE)


def test_an_unknown_tenant_is_refused(signed_out: AzureML) -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import ClientSecretCredential

    tenant = "00000000-0000-0000-0000-00000000dead"
    with (
        ClientSecretCredential(tenant, "someone", "secret") as credential,
        pytest.raises(ClientAuthenticationError, match=f"AADSTS90002: Tenant '{tenant}' not found"),
    ):
        credential.get_token(SCOPE)


def test_one_token_request_per_scope_is_seen(signed_out: AzureML, monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.identity import EnvironmentCredential

    for name, value in signed_out.environment.items():
        monkeypatch.setenv(name, value)
    with EnvironmentCredential() as credential:
        for scope in (SCOPE, SCOPE, "https://storage.azure.com/.default"):
            credential.get_token(scope)
    assert len(signed_out.received("POST", "login.microsoftonline.com/*/oauth2/v2.0/token")) == 2


def test_data_go_to_a_datastore_without_keys_in_the_name_of_the_user(
    azureml: AzureML, client: Any, tmp_path: Path
) -> None:
    from azure.ai.ml.entities import Data

    azureml.cloud.secrets = "None"
    (tmp_path / "file.txt").write_text("sent with a token")
    client.data.create_or_update(Data(name="with-token", path=str(tmp_path / "file.txt"), type="uri_file"))
    uri = azureml.state.data["with-token", "1"]["properties"]["dataUri"]
    name = uri.partition("/paths/")[2]
    assert azureml.azurite.read(azureml.workspace.default_container, name) == b"sent with a token"
    assert azureml.received("POST", "*/listSecrets") == []


IDENTITIES = {
    "user_identity": "from azure.ai.ml.identity import AzureMLOnBehalfOfCredential as Credential",
    "managed_identity": "from azure.identity import ManagedIdentityCredential as Credential",
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_a_process_on_a_node_gets_tokens(azureml: AzureML, client: Any, script: Script, kind: str) -> None:
    from azure.ai.ml import ManagedIdentityConfiguration, UserIdentityConfiguration

    identity = UserIdentityConfiguration() if kind == "user_identity" else ManagedIdentityConfiguration()
    text = f"{IDENTITIES[kind]}\nprint(Credential().get_token('https://storage.azure.com/.default').token)"
    job = script(text)
    job.identity = identity
    client.jobs.create_or_update(job)
    (done,) = azureml.run_pending_jobs()
    assert done.status == "Completed", azureml.log(done)
    assert azureml.cloud.tokens.is_valid(f"Bearer {azureml.log(done).splitlines()[-1]}")
