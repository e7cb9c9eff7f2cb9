"""The login service: tokens for a service principal and for a device code, and the checks of those tokens."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from tests.azureml.web import Answer, Request, Routes

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

LOGIN_HOST = "login.microsoftonline.com"
CLIENT_ID = "0b6b2a51-6c5c-4a4e-93c8-6c8f0f2f9d11"
CLIENT_SECRET = "not-a-secret-of-anything"
USER_ID = "3f0c2f1e-57c9-4a5a-8d0e-9e2a5d1b7c33"
LIFETIME = 3600
routes = Routes()


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


class Tokens:
    """Issues tokens and knows those that it issued."""

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self._issued: dict[str, float] = {}

    def issue(self, audience: str = "https://management.azure.com", *, lifetime: float = LIFETIME) -> str:
        """Returns a token in the form that the SDK and Azurite expect; its signature is not real."""
        issued_at = int(time.time())
        claims = {
            "aud": audience.removesuffix("/.default").rstrip("/"),
            "iss": f"https://sts.windows.net/{self.tenant_id}/",
            "iat": issued_at - 60,
            "nbf": issued_at - 60,
            "exp": int(issued_at + lifetime),
            "appid": CLIENT_ID,
            "oid": USER_ID,
            "sub": USER_ID,
            "preferred_username": "someone@example.com",
            "tid": self.tenant_id,
            "uti": uuid.uuid4().hex,
        }
        token = f"{_encoded({'typ': 'JWT', 'alg': 'RS256'})}.{_encoded(claims)}.{_encoded({'is': 'unsigned'})}"
        self._issued[token] = issued_at + lifetime
        return token

    def is_valid(self, authorization: str) -> bool:
        """Returns True for the header of a request with a token that was issued here and has not expired."""
        kind, _, token = authorization.partition(" ")
        return kind.lower() == "bearer" and self._issued.get(token, 0.0) > time.time()


@routes.add("GET", "/common/discovery/instance", "/{tenant}/discovery/instance")
def instance_discovery(cloud: Cloud, request: Request) -> Answer:
    address = f"https://{LOGIN_HOST}/{cloud.workspace.tenant_id}/v2.0/.well-known/openid-configuration"
    metadata = [{"preferred_network": LOGIN_HOST, "preferred_cache": "login.windows.net", "aliases": [LOGIN_HOST]}]
    return Answer({"tenant_discovery_endpoint": address, "api-version": "1.1", "metadata": metadata})


@routes.add("GET", "/{tenant}/v2.0/.well-known/openid-configuration", "/{tenant}/.well-known/openid-configuration")
def openid_configuration(cloud: Cloud, request: Request) -> Answer:
    tenant = request.parameters["tenant"]
    base = f"https://{LOGIN_HOST}/{tenant}"
    return Answer(
        {
            "issuer": f"{base}/v2.0",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
            "tenant_region_scope": "EU",
        }
    )


@routes.add("POST", "/{tenant}/oauth2/v2.0/devicecode")
def device_code(cloud: Cloud, request: Request) -> Answer:
    code = uuid.uuid4().hex
    message = "To sign in, use a web browser to open https://microsoft.com/devicelogin and enter the code STANDIN."
    return Answer(
        {"device_code": code, "user_code": "STANDIN", "verification_uri": "https://microsoft.com/devicelogin",
         "expires_in": 900, "interval": 1, "message": message}
    )  # fmt: skip


@routes.add("POST", "/{tenant}/oauth2/v2.0/token", "/{tenant}/oauth2/token")
def token(cloud: Cloud, request: Request) -> Answer:
    form = dict(parse_qsl(request.body.decode()))
    if request.parameters["tenant"] != cloud.workspace.tenant_id:
        return _refused("invalid_request", f"AADSTS90002: Tenant '{request.parameters['tenant']}' not found.")
    grant = form.get("grant_type", "")
    if grant == "client_credentials":
        if form.get("client_id") != CLIENT_ID:
            text = f"AADSTS700016: Application with identifier '{form.get('client_id')}' was not found."
            return _refused("unauthorized_client", text)
        if "client_secret" in form and form["client_secret"] != CLIENT_SECRET:
            return _refused("invalid_client", "AADSTS7000215: Invalid client secret provided.", status=401)
    if grant.endswith("device_code") and not cloud.is_device_code_approved:
        return _refused("authorization_pending", "AADSTS70016: OAuth 2.0 device flow error: pending.")
    audience = next((scope for scope in form.get("scope", "").split() if scope.startswith("https://")), "")
    access = cloud.tokens.issue(audience or form.get("resource", ""))
    answer = {"token_type": "Bearer", "expires_in": LIFETIME, "ext_expires_in": LIFETIME, "access_token": access}
    if grant.endswith("device_code"):
        answer |= {"scope": form.get("scope", ""), "refresh_token": uuid.uuid4().hex,
                   "id_token": cloud.tokens.issue(CLIENT_ID)}  # fmt: skip
    return Answer(answer)


@routes.add("GET", "/node/on_behalf_of", "/node/managed_identity")
def node_token(cloud: Cloud, request: Request) -> Answer:
    """What a process on a node asks for tokens, without TLS: in the name of the user, or of the cluster."""
    access = cloud.tokens.issue(request.query["resource"])
    return Answer({"access_token": access, "expires_on": str(int(time.time() + LIFETIME)), "token_type": "Bearer",
                   "resource": request.query["resource"]})  # fmt: skip


def _refused(code: str, description: str, *, status: int = 400) -> Answer:
    return Answer({"error": code, "error_description": description, "error_codes": [], "correlation_id": ""}, status)
