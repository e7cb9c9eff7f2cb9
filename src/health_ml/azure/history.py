"""Run history: what the service knows about runs, their logs and their files.

The SDK's client of it takes seconds to load and cannot be used with the token of a job; these requests can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from health_ml.azure.rest import ARM_ADDRESS, Credential, Patience, RestClient, ServiceError
from health_ml.errors import RunNotFoundError
from health_ml.records.record import RunStatus

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

WORKSPACE_API = "2024-10-01-preview"
_PROVIDER = "providers/Microsoft.MachineLearningServices/workspaces"
_IN_JOB = ("AZUREML_SERVICE_ENDPOINT", "AZUREML_RUN_TOKEN", "AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP",
           "AZUREML_ARM_WORKSPACE_NAME")  # fmt: skip
_NO_END = 1 << 40
_STATUSES = {
    "Completed": RunStatus.FINISHED,
    "Finished": RunStatus.FINISHED,
    "Failed": RunStatus.FAILED,
    "NotResponding": RunStatus.FAILED,
    "Canceled": RunStatus.CANCELLED,
    **dict.fromkeys(("NotStarted", "Queued", "Starting", "Provisioning", "Preparing"), RunStatus.QUEUED),
}
"""What the service calls a status."""

_addresses: dict[str, str] = {}
"""Address of the data plane by workspace: asking takes two requests, and it never changes."""


@dataclass(frozen=True)
class RunFacts:
    """What run history knows about a run.

    :param run_id: Its id, the name of the job.
    :param experiment_id: Id of its experiment.
    :param status: Its status in the words of the service, like ``Completed``.
    :param parent_id: Id of the sweep that it is a trial of, or None.
    :param attempt: How often the service has started it again.
    :param is_sweep: True if its children are the trials of a search.
    :param properties: What was said about it when it was submitted, and what the service adds.
    """

    run_id: str
    experiment_id: str
    status: str
    parent_id: str | None
    display_name: str
    tags: Mapping[str, str]
    attempt: int
    is_sweep: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_status(self) -> RunStatus:
        """Its status in our words; what we know no word for means that the run goes on."""
        return _STATUSES.get(self.status, RunStatus.RUNNING)


@dataclass(frozen=True)
class Artifact:
    """One file of a run.

    :param path: Its path in the run, like ``outputs/checkpoints/last.ckpt``.
    :param url: Where to read it, with a signature: a secret.
    """

    path: str
    url: str


class JobToken:
    """The token that the service gives to a job, as a credential.

    :param token: Its text.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.expires_on = _NO_END

    def get_token(self, *scopes: str) -> JobToken:
        """Returns the token, which is valid for everything that a job may do."""
        return self


class RunHistory:
    """The runs of a workspace. Close it at the end, or use it as a context manager.

    :param rest: Connection to the data plane of the workspace.
    :param workspace: ARM id of the workspace.
    """

    def __init__(self, rest: RestClient, workspace: str) -> None:
        self.rest = rest
        self.workspace = workspace

    @classmethod
    def of_client(cls, client: MLClient, patience: Patience | None = None) -> RunHistory:
        """Returns the runs of the workspace that the SDK's client is connected to."""
        # The client has no public way to its credential, and nobody wants to sign in twice.
        credential = client._credential
        workspace = arm_id(client.subscription_id, client.resource_group_name, str(client.workspace_name))
        return cls.of_workspace(workspace, credential, patience)

    @classmethod
    def of_workspace(cls, workspace: str, credential: Credential, patience: Patience | None = None) -> RunHistory:
        """Returns the runs of a workspace.

        :param workspace: Its ARM id.
        """
        return cls(RestClient(data_plane_address(workspace, credential, patience), credential, patience), workspace)

    @classmethod
    def of_job(cls, environ: Mapping[str, str], patience: Patience | None = None) -> RunHistory | None:
        """Returns the runs of the workspace that this process is a job of, or None if it is none."""
        return cls.in_job(environ, patience) if cls.is_in_job(environ) else None

    @staticmethod
    def is_in_job(environ: Mapping[str, str]) -> bool:
        """Returns True if the variables say where the workspace of this job is, with a token for it."""
        return all(environ.get(name) for name in _IN_JOB)

    @classmethod
    def in_job(cls, environ: Mapping[str, str], patience: Patience | None = None) -> RunHistory:
        """Returns the runs of the workspace that this process is a job of."""
        address, token, *names = (environ[name] for name in _IN_JOB)
        return cls(RestClient(address, JobToken(token), patience), arm_id(*names))

    def __enter__(self) -> RunHistory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self.rest.close()

    def run(self, run_id: str) -> RunFacts:
        """Returns what is known about a run.

        :raises RunNotFoundError: If the workspace has no such run.
        """
        return _facts(self._of_run(run_id, ""))

    def details(self, run_id: str) -> dict[str, Any]:
        """Returns the status of a run, its error, and the addresses of its logs.

        :raises RunNotFoundError: If the workspace has no such run.
        """
        return self._of_run(run_id, "/details")

    def children(self, run: RunFacts) -> list[RunFacts]:
        """Returns the trials of a sweep in the order of their numbers; other runs have none."""
        if not run.is_sweep:
            return []
        found = [_facts(entry) for entry in self.rest.pages(f"{self._runs}/{quote(run.run_id)}/children")]
        return sorted(found, key=lambda child: _natural(child.run_id))

    def artifacts(self, run: RunFacts, prefix: str = "") -> list[Artifact]:
        """Returns the files of a run whose paths start with a prefix."""
        path = f"{self._root}/experimentids/{quote(run.experiment_id)}/runs/{quote(run.run_id)}/artifacts/prefix"
        entries = self.rest.pages(f"{path}/contentinfo", path=prefix)
        return [Artifact(entry["path"], entry["contentUri"]) for entry in entries]

    def update(self, run: RunFacts, *, display_name: str) -> None:
        """Gives a run another name to display."""
        path = f"{self._root}/experimentids/{quote(run.experiment_id)}/runs/{quote(run.run_id)}"
        self.rest.send("PATCH", path, {"runId": run.run_id, "displayName": display_name})

    @property
    def _root(self) -> str:
        return f"/history/v1.0{self.workspace}"

    @property
    def _runs(self) -> str:
        return f"{self._root}/runs"

    def _of_run(self, run_id: str, what: str) -> dict[str, Any]:
        try:
            return self.rest.get(f"{self._runs}/{quote(run_id, safe='')}{what}")
        except ServiceError as error:
            if error.status != 404:
                raise
            name = self.workspace.rpartition("/")[2]
            raise RunNotFoundError(
                f"The AzureML workspace {name} has no run '{run_id}'.",
                "A run id is the name of the job, as the last part of its address in the studio shows it.",
            ) from error


def arm_id(subscription: str, group: str, name: str) -> str:
    """Returns the id of a workspace in Azure's resource manager."""
    return f"/subscriptions/{subscription}/resourceGroups/{group}/{_PROVIDER}/{name}"


def data_plane_address(workspace: str, credential: Credential, patience: Patience | None = None) -> str:
    """Returns where the data plane of a workspace is: each region has one of its own.

    :raises ServiceError: If the workspace does not exist, or cannot be asked.
    """
    if workspace not in _addresses:
        with RestClient(ARM_ADDRESS, credential, patience) as rest:
            properties = rest.get(workspace, **{"api-version": WORKSPACE_API})["properties"]
        discovery = str(properties["discoveryUrl"])
        host, _, path = discovery.removeprefix("https://").partition("/")
        with RestClient(f"https://{host}", credential, patience) as rest:
            _addresses[workspace] = str(rest.get(f"/{path}")["api"])
    return _addresses[workspace]


def workspace_tracking_uri(workspace: str, credential: Credential, patience: Patience | None = None) -> str:
    """Returns the address under which MLflow logs to a workspace."""
    host = data_plane_address(workspace, credential, patience).removeprefix("https://")
    return f"azureml://{host}/mlflow/v2.0{workspace}"


def _facts(record: Mapping[str, Any]) -> RunFacts:
    return RunFacts(
        run_id=str(record["runId"]),
        experiment_id=str(record.get("experimentId") or ""),
        status=str(record.get("status") or ""),
        parent_id=record.get("parentRunId"),
        display_name=str(record.get("displayName") or ""),
        tags=record.get("tags") or {},
        attempt=max(0, int(record.get("currentAttemptId") or 1) - 1),
        is_sweep="hyperdrive" in str(record.get("runType")).lower(),
        properties=record.get("properties") or {},
    )


def _natural(name: str) -> tuple[int, str]:
    """Returns what to sort trials by: ``sweep_10`` comes after ``sweep_9``."""
    number = name.rpartition("_")[2]
    return (int(number), name) if number.isdigit() else (-1, name)
