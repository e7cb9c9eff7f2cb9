"""The contract of a back end: it renders a plan into its own request, submits it, and follows the run.

``render`` is pure and its result can be printed, so a dry run shows exactly what would be submitted. One contract
suite in ``tests/contract`` runs against every back end.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from health_ml.planning.plan import JobPlan
from health_ml.records.record import RunStatus


@dataclass(frozen=True)
class Request:
    """What a back end would submit for a plan.

    :param backend: Name of the back end.
    :param plan: The plan that the request was rendered from.
    :param body: The request in the back end's own terms, as plain JSON values.
    """

    backend: str
    plan: JobPlan
    body: Mapping[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """Returns the request as JSON that a person can read."""
        return json.dumps({"backend": self.backend, "request": self.body}, indent=2, sort_keys=True)


class RunHandle(ABC):
    """A submitted run.

    :param run_id: Id of the run, with which any other process can get a handle of the same run.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    @abstractmethod
    def status(self) -> RunStatus:
        """Returns how the run stands now."""

    @abstractmethod
    def stream(self, write: Callable[[str], None]) -> None:
        """Hands every line of the run's logs to ``write``, from the beginning, until the run has ended."""

    @abstractmethod
    def wait(self, timeout_seconds: float | None = None) -> RunStatus:
        """Returns the status once the run has ended, or the present one when the time is over."""

    @abstractmethod
    def cancel(self) -> None:
        """Ends the run and everything that it started. Does nothing if it has ended."""

    @abstractmethod
    def download(self, pattern: str, target: Path) -> list[Path]:
        """Returns the files of the run that match a glob pattern, copied below the target folder."""


class Backend(ABC):
    """A place where plans run."""

    name: ClassVar[str]

    @abstractmethod
    def render(self, plan: JobPlan) -> Request:
        """Returns the request for a plan. Pure: touches no file and no network.

        :raises PlanError: If the plan asks for something that this back end cannot do.
        """

    @abstractmethod
    def submit(self, request: Request) -> RunHandle:
        """Returns a handle of the run after starting it.

        :raises BackendError: If it was refused; nothing is left behind then.
        """

    @abstractmethod
    def attach(self, run_id: str) -> RunHandle:
        """Returns a handle of a run that was submitted before, also by another process.

        :raises RunNotFoundError: If there is no such run.
        """
