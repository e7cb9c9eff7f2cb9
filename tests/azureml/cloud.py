"""The inside of the stand-in: one object that every handler gets, and the way of a request through it."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.azureml import asset_routes, history_routes, identity, job_routes, mlflow_routes, workspace_routes
from tests.azureml.azurite import Azurite
from tests.azureml.contract import Contract
from tests.azureml.errors import ServiceError
from tests.azureml.jobs import Jobs
from tests.azureml.misbehaviour import Misbehaviour, Trouble, troubled_answer
from tests.azureml.mlflow_server import MlflowServer
from tests.azureml.state import Compute, Received, State, Workspace
from tests.azureml.web import Answer, Request, Routes

OPEN_PATHS = ("/discovery", "/node/")
"""What a client may ask for without a token: where services are, and on a node a token itself."""

NOT_FORWARDED = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class Cloud:
    """Everything behind the routes."""

    def __init__(
        self, workspace: Workspace, azurite: Azurite, mlflow: MlflowServer, contract: Contract, *, folder: Path
    ) -> None:
        self.workspace = workspace
        self.azurite = azurite
        self.mlflow = mlflow
        self.contract = contract
        self.tokens = identity.Tokens(workspace.tenant_id)
        self.misbehaviour = Misbehaviour()
        self.jobs = Jobs(self, folder)
        self.routes = _all_routes()
        self.state = State()
        self.extra_datastores: dict[str, str] = {}
        self.network_variables: dict[str, str] = {}
        self.plain_address = ""
        self.set_defaults()

    def set_defaults(self) -> None:
        """Sets everything that a test may change to what it is at the start."""
        self.secrets = "Sas"
        self.page_size = 30
        self.is_device_code_approved = True
        self.grace_seconds = 10.0
        # A node has the environment that the job asks for, not this one; what runs from source has to be found.
        self.node_variables = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        self.misbehaviour.troubles.clear()
        clusters = [Compute("gpu"), Compute("cpu", vm_size="STANDARD_DS3_V2"),
                    Compute("low-priority", vm_priority="LowPriority")]  # fmt: skip
        self.state.computes = {cluster.name: cluster for cluster in clusters}

    def respond(self, request: Request) -> Answer:
        """Returns the answer to any request, and remembers both."""
        if ".blob." in request.host:
            return self._with_trouble(request, self._forward_to_azurite)
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        body = _readable(request.body)
        received = Received(request.method, request.host, request.path, request.query, body, headers)
        self.state.requests.append(received)
        received.problems = self.contract.problems(received)
        is_open = request.host == identity.LOGIN_HOST or request.path.startswith(OPEN_PATHS)
        answer = self._with_trouble(request, self._route if is_open else self._authorized)
        received.status = 0 if answer.is_connection_closed else answer.status
        return answer

    def _with_trouble(self, request: Request, respond: Any) -> Answer:
        trouble: Trouble | None = self.misbehaviour.next_for(request)
        wrong = troubled_answer(trouble) if trouble else None
        if wrong is not None:
            return wrong
        answer: Answer = respond(request)
        return Answer(is_connection_closed=True) if trouble and trouble.is_lost else answer

    def _authorized(self, request: Request) -> Answer:
        if not self.tokens.is_valid(request.headers.get("authorization", "")):
            error = {"code": "InvalidAuthenticationToken", "message": "The access token is missing or has expired."}
            return Answer({"error": error}, 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        return self._route(request)

    def _route(self, request: Request) -> Answer:
        handler = self.routes.find(request)
        try:
            if handler is None:
                text = f"The stand-in has no route for {request.method} {request.host}{request.path}."
                raise ServiceError(404, "NotFound", text)
            self._check_workspace(request)
            return handler(self, request)
        except ServiceError as error:
            return error.answer()
        except Exception as error:  # a mistake in the stand-in has to be seen by whoever runs the test
            traceback.print_exc(file=sys.stderr)
            return ServiceError(500, "InternalServerError", f"The stand-in failed: {error!r}").answer()

    def _check_workspace(self, request: Request) -> None:
        group, name = request.parameters.get("group"), request.parameters.get("ws")
        if request.parameters.get("subscription", self.workspace.subscription_id) != self.workspace.subscription_id:
            text = f"The subscription '{request.parameters['subscription']}' could not be found."
            raise ServiceError(404, "SubscriptionNotFound", text)
        if group is not None and group.lower() != self.workspace.resource_group.lower():
            raise ServiceError(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
        if name is not None and name.lower() != self.workspace.name.lower():
            text = f"The Resource 'Microsoft.MachineLearningServices/workspaces/{name}' was not found."
            raise ServiceError(404, "ResourceNotFound", text)

    def _forward_to_azurite(self, request: Request) -> Answer:
        context = ssl.create_default_context(cafile=str(self.azurite.authority))
        connection = http.client.HTTPSConnection("127.0.0.1", self.azurite.port, timeout=120, context=context)
        try:
            connection.request(request.method, request.target, request.body, request.headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in NOT_FORWARDED}
        if request.method == "HEAD":
            headers["Content-Length"] = response.getheader("Content-Length", "0")
        return Answer(body, response.status, headers)


def _all_routes() -> Routes:
    routes = Routes()
    for module in (workspace_routes, asset_routes, job_routes, history_routes, mlflow_routes, identity):
        routes.include(module.routes)
    return routes


def _readable(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body
