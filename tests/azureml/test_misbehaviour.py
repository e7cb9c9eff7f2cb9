"""The stand-in goes wrong when it is told to, and what nobody was told to do is noticed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.azureml.contract import MISSING
from tests.azureml.service import AzureML
from tests.azureml.state import Compute
from tests.azureml.workspace_routes import compute_resource

Script = Callable[..., Any]
JOBS = "management.azure.com/*/jobs/*"
BLOBS = "*.blob.core.windows.net/*"


def test_throttling_and_outages_are_overcome_by_the_sdk(azureml: AzureML, client: Any, script: Script) -> None:
    throttled = azureml.misbehave("PUT", JOBS, times=2, status=429, retry_after=0)
    down = azureml.misbehave("GET", "*/codes/*", status=503, retry_after=0)
    name = client.jobs.create_or_update(script("print()")).name
    assert (throttled.met, down.met) == (2, 1)
    assert [request.status for request in azureml.received("PUT", JOBS)] == [429, 429, 201]
    assert name in azureml.state.jobs


def test_a_broken_connection_has_no_effect_and_a_lost_answer_has(azureml: AzureML, client: Any, script: Script) -> None:
    azureml.misbehave("PUT", JOBS, close=True)
    azureml.misbehave("PUT", JOBS, lost=True)
    job = script("print()")
    job.name = "lost-and-found"
    client.jobs.create_or_update(job)
    assert [request.status for request in azureml.received("PUT", JOBS)] == [0, 0, 201]
    assert "lost-and-found" in azureml.state.jobs


def test_a_delayed_and_wrong_answer(azureml: AzureML, client: Any) -> None:
    wrong = compute_resource(azureml.cloud, Compute("another"))
    trouble = azureml.misbehave("GET", "*/computes/gpu", delay=0.3, answer=wrong)
    start = time.monotonic()
    assert client.compute.get("gpu").name == "another"
    assert time.monotonic() - start > 0.3
    assert client.compute.get("gpu").name == "gpu"
    assert trouble.met == 1


def test_blob_storage_fails_too_and_also_in_an_open_connection(azureml: AzureML) -> None:
    container = azureml.workspace.default_container
    azureml.azurite.write(container, "a/b.txt", b"content")
    address = f"{azureml.workspace.blob_address}/{container}/a/b.txt"
    with _session(azureml) as session:
        address += f"?{azureml.azurite.signature(container)}"
        assert session.get(address, timeout=10).content == b"content"
        azureml.misbehave("GET", BLOBS, status=503, retry_after=3)
        azureml.misbehave("GET", BLOBS, close=True)
        answer = session.get(address, timeout=10)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
        with pytest.raises(requests.exceptions.ConnectionError, match=r"aborted|reset|closed|EOF"):
            session.get(address, timeout=10)
        assert session.get(address, headers={"Range": "bytes=0-2"}, timeout=10).content == b"con"
        assert session.put(address, b"new", headers={"x-ms-blob-type": "BlockBlob"}, timeout=10).status_code == 201
        assert session.head(address, timeout=10).headers["Content-Length"] == "3"
    assert [request.status for request in azureml.blob_requests("GET")] == [200, 206]


def test_other_hosts_are_refused_and_remembered(azureml: AzureML) -> None:
    with _session(azureml) as session:
        with pytest.raises(requests.exceptions.ProxyError, match="403 Forbidden"):
            session.get("https://telemetry.example.com/", timeout=10)
        assert session.get("http://example.com/", timeout=10).status_code == 403
    assert azureml.refused() == ["telemetry.example.com:443", "example.com:80"]
    azureml.expect_refused("*.example.com:443")
    assert azureml.refused() == ["example.com:80"]
    azureml.expect_refused("example.com:*")


def test_a_body_against_the_definitions_is_noticed(azureml: AzureML) -> None:
    if not azureml.cloud.contract.is_available:
        pytest.skip(MISSING)
    contract = azureml.cloud.contract
    body = {"properties": {"jobType": "Command", "command": 7, "environmentId": "e", "invented": 1}}
    assert contract.check("2025-01-01-preview", "jobs", body) == [
        "properties.command: a text is needed, not 7",
        "properties.invented: there is no such property (with value '1')",
    ]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"headers": {}}, 401, "InvalidAuthenticationToken"),
        ({"subscription": "other"}, 404, "SubscriptionNotFound"),
        ({"group": "other"}, 404, "ResourceGroupNotFound"),
        ({"workspace": "other"}, 404, "ResourceNotFound"),
    ],
)
def test_a_wrong_workspace_or_no_token_is_refused(
    azureml: AzureML, change: dict[str, Any], status: int, code: str
) -> None:
    workspace = azureml.workspace
    path = workspace.prefix
    path = path.replace(workspace.subscription_id, change.get("subscription", workspace.subscription_id))
    path = path.replace(workspace.resource_group, change.get("group", workspace.resource_group))
    path = path.replace(f"/{workspace.name}", f"/{change.get('workspace', workspace.name)}")
    headers = change.get("headers", {"Authorization": f"Bearer {azureml.token()}"})
    answer = _get(azureml, f"https://management.azure.com{path}", headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_an_expired_token_is_refused(azureml: AzureML) -> None:
    headers = {"Authorization": f"Bearer {azureml.token(lifetime=-1)}"}
    assert _get(azureml, f"https://management.azure.com{azureml.workspace.prefix}", headers).status_code == 401


def test_a_wrong_secret_is_refused_by_the_login_service(azureml: AzureML, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**azureml.environment, "AZURE_CLIENT_SECRET": "wrong"}.items():
        monkeypatch.setenv(name, value)
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import EnvironmentCredential

    with (
        EnvironmentCredential() as credential,
        pytest.raises(ClientAuthenticationError, match="Invalid client secret provided"),
    ):
        credential.get_token("https://management.azure.com/.default")


def _session(azureml: AzureML) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.proxies = {"https": azureml.environment["HTTPS_PROXY"], "http": azureml.environment["HTTPS_PROXY"]}
    session.verify = azureml.environment["REQUESTS_CA_BUNDLE"]
    return session


def _get(azureml: AzureML, address: str, headers: dict[str, str]) -> requests.Response:
    with _session(azureml) as session:
        return session.get(address, headers=headers, timeout=10)


def test_a_signature_as_datastores_give_it_starts_with_a_question_mark(azureml: AzureML, tmp_path: Path) -> None:
    from azure.storage.blob import ContainerClient

    path = f"https://management.azure.com{azureml.workspace.prefix}/datastores/workspaceblobstore/listSecrets"
    with _session(azureml) as session:
        found = session.post(path, headers={"Authorization": f"Bearer {azureml.token()}"}, timeout=10).json()
    assert found["secretsType"] == "Sas"
    assert found["sasToken"].startswith("?")
    container = f"{azureml.workspace.blob_address}/{azureml.workspace.default_container}"
    proxies, authority = {"https": azureml.environment["HTTPS_PROXY"]}, azureml.environment["REQUESTS_CA_BUNDLE"]
    with ContainerClient.from_container_url(
        container + found["sasToken"], proxies=proxies, connection_verify=authority
    ) as blobs:
        blobs.upload_blob("signed.txt", b"written with the signature", overwrite=True)
    assert azureml.azurite.read(azureml.workspace.default_container, "signed.txt") == b"written with the signature"
