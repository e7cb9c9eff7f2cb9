from __future__ import annotations

import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from health_ml.azure.auth import CachingCredential, get_credential
from health_ml.azure.rest import BearerTokens
from health_ml.errors import AuthenticationError
from health_ml.planning.sign_in import AuthMethod
from tests.helpers.http_server import serving

NOWHERE = "http://127.0.0.1:1"
SCOPE = "https://management.azure.com/.default"


class Counting:
    """A credential of a test, which counts what it was asked for."""

    def __init__(self, lifetime: float = 3600) -> None:
        self.lifetime = lifetime
        self.asked: list[tuple[tuple[str, ...], Any]] = []

    def get_token(self, *scopes: str, claims: str | None = None, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        self.asked.append((scopes, claims))
        time.sleep(0.01)
        return AccessToken(f"token {len(self.asked)}", int(time.time() + self.lifetime))


def nowhere(tmp_path: Path) -> dict[str, str]:
    """Variables with which no method is available: no metadata service, no az."""
    return {"PATH": str(tmp_path), "AZURE_POD_IDENTITY_AUTHORITY_HOST": NOWHERE}


def test_one_token_per_scope_whoever_asks() -> None:
    source = Counting()
    credential = CachingCredential({AuthMethod.AZURE_CLI: lambda: source})
    threads = [threading.Thread(target=credential.get_token, args=(SCOPE,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.asked == [((SCOPE,), None)]
    credential.get_token("https://storage.azure.com/.default")
    assert len(source.asked) == 2
    assert credential.get_token(SCOPE, claims="more").token == "token 3", "a demand is not answered from memory"
    assert credential.get_token(SCOPE).token == "token 3"


def test_a_token_that_a_service_refused_is_not_given_again() -> None:
    credential = CachingCredential({AuthMethod.AZURE_CLI: Counting})
    tokens = BearerTokens(credential, SCOPE)
    assert (tokens.current(), tokens.current()) == ("token 1", "token 1")
    tokens.forget()
    assert tokens.current() == "token 2"


def test_a_service_principal_that_is_incomplete_or_wrong(tmp_path: Path) -> None:
    names = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_CERTIFICATE_PATH": str(tmp_path / "no.pem")}
    with pytest.raises(AuthenticationError, match=r"environment: +.*no\.pem") as caught:
        get_credential(environ={**nowhere(tmp_path), **names}).get_token(SCOPE)
    assert "az login" not in caught.value.hint
    assert "--auth=azure_cli" in caught.value.hint


def test_a_token_that_is_about_to_expire_is_fetched_again() -> None:
    source = Counting(lifetime=120)
    credential = CachingCredential({AuthMethod.AZURE_CLI: lambda: source})
    credential.get_token(SCOPE)
    credential.get_token(SCOPE)
    assert len(source.asked) == 2


def test_each_method_is_named_with_the_reason_why_it_failed(tmp_path: Path) -> None:
    environ = {**nowhere(tmp_path), "AZURE_CLIENT_ID": "somebody"}
    with pytest.raises(AuthenticationError, match="Azure gave no token") as caught:
        get_credential(environ=environ).get_token(SCOPE)
    lines = caught.value.message.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [method.value for method in AuthMethod]
    for method, reason in {
        "environment": "AZURE_TENANT_ID and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH are not set",
        "workload_identity": "AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE are not set",
        "managed_identity": "this machine is not in Azure",
        "azure_cli": r"the Azure CLI \(az\) is not installed",
        "device_code": "nobody can be asked",
        "browser": "nobody can be asked",
    }.items():
        assert any(line.strip().startswith(method) and reason.replace("\\", "") in line for line in lines), reason
    assert "az login" in caught.value.hint


def test_only_the_picked_method_is_tried(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match=r"Tried, in this order:\n  azure_cli: +the Azure CLI") as caught:
        get_credential(environ=nowhere(tmp_path), auth="azure_cli").get_token(SCOPE)
    assert "environment" not in caught.value.message
    assert caught.value.hint.startswith("Install the Azure CLI if it is missing, and run az login")
    assert "AZURE_CLIENT_SECRET" not in caught.value.hint


@pytest.mark.parametrize(
    ("auth", "advice"),
    [
        ("environment", "Correct AZURE_TENANT_ID"),
        ("on_behalf_of", "--identity_based_auth"),
        ("workload_identity", "AZURE_FEDERATED_TOKEN_FILE"),
        ("managed_identity", "an identity in Azure"),
    ],
)
def test_the_advice_is_about_the_picked_method(tmp_path: Path, auth: str, advice: str) -> None:
    with pytest.raises(AuthenticationError, match=f"{auth}:") as caught:
        get_credential(environ=nowhere(tmp_path), auth=auth).get_token(SCOPE)
    assert advice in caught.value.hint
    assert "az login" not in caught.value.hint


@pytest.mark.parametrize("auth", [None, "environment"])
def test_without_a_network_no_sign_in_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auth: str | None) -> None:
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    names = {"AZURE_TENANT_ID": str(uuid.uuid4()), "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"}
    with pytest.raises(AuthenticationError, match="Unable to connect to proxy") as caught:
        get_credential(environ={**nowhere(tmp_path), **names}, auth=auth).get_token(SCOPE)
    assert caught.value.hint == "Check the network, and HTTPS_PROXY where there is a proxy; then repeat the command."


def test_an_unknown_method() -> None:
    with pytest.raises(AuthenticationError, match=r"no way 'cli'.*environment, .*azure_cli, device_code or browser"):
        get_credential(environ={}, auth="cli")


@pytest.fixture
def az(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns where the answer of an Azure CLI goes, which counts its calls beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answer = tmp_path / "answer.sh"
    script = folder / "az"
    script.write_text(f"#!/bin/sh\necho call >> {tmp_path}/calls\n. {answer}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    return answer


def test_the_azure_cli_is_called_once(az: Path, tmp_path: Path) -> None:
    az.write_text('echo \'{"accessToken": "from az", "expires_on": 4102444800, "tenant": "t"}\'\n')
    environ = {"PATH": f"{tmp_path}/bin", "AZURE_POD_IDENTITY_AUTHORITY_HOST": NOWHERE}
    credential = get_credential(environ=environ)
    assert [credential.get_token(SCOPE).token for _ in range(3)] == ["from az"] * 3
    assert (tmp_path / "calls").read_text() == "call\n"
    assert credential.method is AuthMethod.AZURE_CLI


def test_an_expired_login_of_the_azure_cli(az: Path, tmp_path: Path) -> None:
    az.write_text("echo \"ERROR: AADSTS70043: The refresh token has expired. Run 'az login'.\" >&2\nexit 1\n")
    with pytest.raises(AuthenticationError, match=r"azure_cli: .*(az login|expired)"):
        get_credential(environ={"PATH": f"{tmp_path}/bin"}, auth="azure_cli").get_token(SCOPE)


def test_a_metadata_service_that_gives_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b'{"error": "invalid_request", "error_description": "Identity not found"}'

    def refuse(handler: BaseHTTPRequestHandler, index: int) -> None:
        handler.send_response(400)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    with serving(refuse) as server:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", server.url)
        environ = {"PATH": str(tmp_path), "AZURE_POD_IDENTITY_AUTHORITY_HOST": server.url}
        with pytest.raises(AuthenticationError, match=r"managed_identity: .*Identity not found"):
            get_credential(environ=environ, auth="managed_identity").get_token(SCOPE)
