"""The stand-in as tests see it: started once for a session, inspected and misled by each test."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import tempfile
import threading
import time
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from tests.azureml.azurite import Azurite, BlobRequest, install_azurite
from tests.azureml.certificates import make_certificates
from tests.azureml.cloud import Cloud
from tests.azureml.contract import Contract, contract_folder
from tests.azureml.identity import CLIENT_ID, CLIENT_SECRET
from tests.azureml.misbehaviour import Trouble
from tests.azureml.mlflow_server import MlflowServer
from tests.azureml.proxy import ConnectProxy
from tests.azureml.state import ARTIFACT_CONTAINER, Job, Received, State, Workspace
from tests.azureml.web import WebServer

Result = TypeVar("Result")
STORAGE_KEY = base64.b64encode(b"the stand-in's storage account. " * 2).decode()
NETWORK_VARIABLES = {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"}
BLOB_HOSTS = "*.blob.core.windows.net"


class AzureML:
    """A running stand-in for AzureML.

    :param folder: Where its certificates, logs and jobs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = Workspace()
        self.certificates = make_certificates(folder / "certificates")
        self.azurite = Azurite(folder, self.certificates, account=self.workspace.account, key=STORAGE_KEY)
        self.mlflow = MlflowServer(folder / "mlflow")
        self.cloud = Cloud(
            self.workspace, self.azurite, self.mlflow, Contract(contract_folder()), folder=folder / "jobs"
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="azureml-stand-in-loop")
        self._server = WebServer(self.cloud.respond, self.certificates.server_context())
        services = (
            "management.azure.com",
            "*.api.azureml.ms",
            "*.experiments.azureml.net",
            "login.microsoftonline.com",
        )
        routes = {name: lambda: self._server.port for name in services}
        self.proxy = ConnectProxy({**routes, BLOB_HOSTS: self._blob_port})
        self._request_mark = 0
        self._blob_mark = 0
        self._expected_refusals: list[str] = []

    def start(self) -> None:
        """Starts all servers; takes about two seconds, and longer when Azurite has to be installed."""
        install_azurite()
        self._thread.start()
        self._run(self._server.open())
        self._run(self.proxy.open())
        self.azurite.start(self.environment["HTTPS_PROXY"])
        self.mlflow.start()
        self.azurite.wait()
        self.cloud.network_variables = {
            name: value for name, value in self.environment.items() if name.upper() in NETWORK_VARIABLES
        }
        self.cloud.plain_address = f"http://127.0.0.1:{self._server.plain_port}"
        for container in (self.workspace.default_container, ARTIFACT_CONTAINER):
            self.azurite.make_container(container)

    def stop(self) -> None:
        """Ends all jobs, servers, threads and processes."""
        if self._thread.is_alive():
            self._run(self.proxy.close())
            self._run(self._server.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._loop.close()
        self.mlflow.stop()
        self.azurite.stop()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _blob_port(self) -> int:
        """Returns where blob traffic goes: straight to Azurite unless something has to go wrong with it."""
        has_trouble = any(trouble.concerns_blobs for trouble in self.cloud.misbehaviour.troubles)
        return self._server.port if has_trouble else self.azurite.port

    @property
    def state(self) -> State:
        """Jobs, assets and requests."""
        return self.cloud.state

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process takes the stand-in for Azure, signed in as a service principal."""
        authority = str(self.certificates.authority)
        proxy = f"http://127.0.0.1:{self.proxy.port}"
        network = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
        return {
            **network,
            **{name.lower(): value for name, value in network.items()},
            "REQUESTS_CA_BUNDLE": authority,
            "SSL_CERT_FILE": authority,
            "AZURE_TENANT_ID": self.workspace.tenant_id,
            "AZURE_CLIENT_ID": CLIENT_ID,
            "AZURE_CLIENT_SECRET": CLIENT_SECRET,
            # The SDK sets this one itself in the process that uses it.
            "AZUREML_CURRENT_CLOUD": "AzureCloud",
            "AZUREML_RUN_POLLING_INTERVAL_MIN": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    @property
    def config(self) -> dict[str, str]:
        """The content of a ``config.json`` for the workspace."""
        workspace = self.workspace
        return {"subscription_id": workspace.subscription_id, "resource_group": workspace.resource_group,
                "workspace_name": workspace.name}  # fmt: skip

    def token(self, audience: str = "https://management.azure.com", *, lifetime: float = 3600) -> str:
        """Returns a token as the login service issues it, for credentials that get theirs elsewhere."""
        return self.cloud.tokens.issue(audience, lifetime=lifetime)

    def executing(self, timeout: float = 240) -> AbstractContextManager[None]:
        """Executes jobs as they come while the block runs, and waits at its end until all of them have ended."""
        return self.cloud.jobs.executing(timeout)

    def run_pending_jobs(self, timeout: float = 240) -> list[Job]:
        """Executes the jobs that wait, and returns them when all have ended; trials are not in the list."""
        pending = self.cloud.jobs.pending()
        with self.executing(timeout):
            pass
        return pending

    def preempt(self, job: Job) -> None:
        """Takes the nodes of a running job away: SIGTERM, SIGKILL after ``cloud.grace_seconds``, and a new start."""
        self.cloud.jobs.preempt(job)

    def log(self, job: Job) -> str:
        """Returns what the job has written so far, all processes and attempts one after the other."""
        names = self.azurite.names(ARTIFACT_CONTAINER, f"{job.artifact_prefix}user_logs/")
        return "".join(self.azurite.read(ARTIFACT_CONTAINER, name).decode(errors="replace") for name in names)

    def wait_for_log(self, job: Job, text: str, timeout: float = 60) -> None:
        """Waits until a running job has written a text."""
        deadline = time.monotonic() + timeout
        while text not in self.log(job):
            if time.monotonic() > deadline or job.is_final:
                raise TimeoutError(f"{text!r} is not in the log of {job.name} ({job.status}): {self.log(job)[-2000:]}")
            time.sleep(0.1)

    def artifacts(self, job: Job) -> dict[str, bytes]:
        """Returns the artifacts of a run by name: its logs and outputs."""
        names = self.azurite.names(ARTIFACT_CONTAINER, job.artifact_prefix)
        return {name.removeprefix(job.artifact_prefix): self.azurite.read(ARTIFACT_CONTAINER, name) for name in names}

    def run_data(self, run: str) -> dict[str, Any]:
        """Returns what MLflow knows about a job or run: ``info``, and ``data`` with metrics, params and tags."""
        found: dict[str, Any] = self.mlflow.get_run(run)
        return found

    def misbehave(
        self,
        method: str,
        pattern: str,
        *,
        times: int = 1,
        status: int | None = None,
        delay: float = 0.0,
        close: bool = False,
        lost: bool = False,
        answer: Any = None,
        retry_after: float | None = None,
    ) -> Trouble:
        """Returns the new rule by which requests go wrong; ``.met`` counts the requests that it met.

        :param method: ``PUT`` and so on, ``*`` for all.
        :param pattern: Shell pattern of host and path, for example ``*/jobs/*`` or ``*.blob.core.windows.net/*``.
        :param times: How many requests, -1 for all.
        :param status: Answer with this status and an error.
        :param delay: Seconds to wait first.
        :param close: Break the connection; the request has no effect.
        :param lost: Break the connection after the request has had its effect.
        :param answer: Answer with this body.
        :param retry_after: Seconds for the header ``Retry-After``.
        """
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        trouble = Trouble(method, pattern, times, status, delay, close, lost, answer, headers)
        self.cloud.misbehaviour.troubles.append(trouble)
        if trouble.concerns_blobs:
            self._run(self.proxy.cut(BLOB_HOSTS))
        return trouble

    def received(self, method: str = "*", pattern: str = "*") -> list[Received]:
        """Returns the requests of this test to all services but blob storage, oldest first."""
        found = self.state.requests[self._request_mark :]
        return [request for request in found if request.matches(method, pattern)]

    def blob_requests(self, method: str = "*") -> list[BlobRequest]:
        """Returns the requests of this test to blob storage, oldest first.

        For an asynchronous copy Azurite asks for the source itself; that request is in the list too.
        """
        return [request for request in self.azurite.requests()[self._blob_mark :] if method in ("*", request.method)]

    def expect_refused(self, pattern: str) -> None:
        """Lets a test ask for hosts that the proxy refuses; the pattern is one of ``host:port``."""
        self._expected_refusals.append(pattern)

    def refused(self) -> list[str]:
        """Returns what the proxy refused in this test without being expected, as ``host:port``."""
        return [target for target in self.proxy.refused
                if not any(fnmatch.fnmatchcase(target, pattern) for pattern in self._expected_refusals)]  # fmt: skip

    def problems(self) -> list[str]:
        """Returns what was wrong with the request bodies of this test."""
        return [f"{request.method} {request.path}: {problem}" for request in self.received()
                for problem in request.problems]  # fmt: skip

    def start_test(self) -> None:
        """Forgets the requests, refusals and troubles of the tests before; assets and jobs stay."""
        self.cloud.set_defaults()
        self.cloud.jobs.forget()
        self.proxy.refused.clear()
        self._expected_refusals.clear()
        self._request_mark = len(self.state.requests)
        self._blob_mark = len(self.azurite.requests())


def start_stand_in() -> tuple[AzureML, tempfile.TemporaryDirectory[str]]:
    """Returns a running stand-in and the folder that has to be removed when it is stopped."""
    folder = tempfile.TemporaryDirectory(prefix="azureml-stand-in-")
    service = AzureML(Path(folder.name))
    try:
        service.start()
    except BaseException:
        service.stop()
        folder.cleanup()
        raise
    return service, folder
