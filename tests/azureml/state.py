"""What the stand-in remembers: the workspace, assets, jobs, and every request that it received."""

from __future__ import annotations

import fnmatch
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

FINAL_STATUSES = frozenset({"Completed", "Failed", "Canceled", "NotResponding"})


def now() -> str:
    """Returns the time in the format of the service."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f+00:00")


@dataclass(frozen=True)
class Workspace:
    """Where the stand-in's workspace is."""

    subscription_id: str = "5b1a7e0c-1f0a-4c57-9d3b-6f2f7f0c1a01"
    resource_group: str = "himl-tests"
    name: str = "stand-in"
    workspace_id: str = "1c2d3e4f-0a1b-4c2d-8e3f-4a5b6c7d8e9f"
    tenant_id: str = "72f90b1e-86f1-41af-91ab-2d7cd011db47"
    location: str = "westeurope"
    account: str = "standin"

    @property
    def prefix(self) -> str:
        """The ARM id, which starts the path of every request of the control plane."""
        group = f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
        return f"{group}/providers/Microsoft.MachineLearningServices/workspaces/{self.name}"

    @property
    def data_plane(self) -> str:
        """The address of run history and MLflow."""
        return f"https://{self.location}.api.azureml.ms"

    @property
    def blob_address(self) -> str:
        """The address of blob storage as the service writes it."""
        return f"https://{self.account}.blob.core.windows.net"

    @property
    def default_container(self) -> str:
        """The container behind the datastore ``workspaceblobstore``."""
        return f"azureml-blobstore-{self.workspace_id}"


ARTIFACT_CONTAINER = "azureml"
"""The container behind the datastore ``workspaceartifactstore``."""


@dataclass
class Compute:
    """A compute cluster."""

    name: str
    vm_size: str = "STANDARD_NC6S_V3"
    vm_priority: str = "Dedicated"
    max_nodes: int = 4
    state: str = "Succeeded"


@dataclass
class Received:
    """One request to any service but blob storage, with what was answered and what was wrong with the body."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    status: int = 0
    problems: list[str] = field(default_factory=list)

    def matches(self, method: str, pattern: str) -> bool:
        """Returns True for a method (``*`` for all) and a pattern of ``host/path``."""
        return method in ("*", self.method) and fnmatch.fnmatchcase(f"{self.host}{self.path}", pattern)


@dataclass
class Job:
    """One job or one trial of a sweep."""

    name: str
    body: dict[str, Any]
    """The ``properties`` as the client sent them; for a trial those that the service derives from its sweep."""
    api_version: str = ""
    parent: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    """The values of the search space that a trial got."""
    status: str = "Starting"
    attempt: int = 0
    """How often the job was restarted after a preemption."""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    exit_codes: list[int] = field(default_factory=list)
    """Exit codes of the processes of the last attempt, in the order of their ranks."""
    created: str = field(default_factory=now)
    started: str | None = None
    ended: str | None = None
    children: list[str] = field(default_factory=list)
    is_cancel_requested: bool = False
    is_interactive: bool = False
    """True for a run that was started through MLflow, outside a job."""

    @property
    def kind(self) -> str:
        """``Command`` or ``Sweep``."""
        return str(self.body["jobType"])

    @property
    def experiment(self) -> str:
        """The experiment, ``Default`` if none was given."""
        return str(self.body.get("experimentName") or "Default")

    @property
    def is_final(self) -> bool:
        """True when nothing happens to the job any more."""
        return self.status in FINAL_STATUSES

    @property
    def artifact_prefix(self) -> str:
        """Where logs and outputs are in the artifact container."""
        return f"ExperimentRun/dcid.{self.name}/"


Asset = dict[str, Any]


@dataclass
class State:
    """Everything that was created in the workspace, and what was asked of it."""

    jobs: dict[str, Job] = field(default_factory=dict)
    codes: dict[tuple[str, str], Asset] = field(default_factory=dict)
    environments: dict[tuple[str, str], Asset] = field(default_factory=dict)
    data: dict[tuple[str, str], Asset] = field(default_factory=dict)
    models: dict[tuple[str, str], Asset] = field(default_factory=dict)
    computes: dict[str, Compute] = field(default_factory=dict)
    requests: list[Received] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def assets(self, kind: str) -> dict[tuple[str, str], Asset]:
        """Returns the versions of one kind of asset, by name and version."""
        found: dict[tuple[str, str], Asset] = getattr(self, kind)
        return found

    def received(self, method: str = "*", pattern: str = "*") -> list[Received]:
        """Returns the requests with a method and a pattern of ``host/path``, oldest first."""
        return [request for request in list(self.requests) if request.matches(method, pattern)]
