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

from health_ml.environment import process_environment
from health_ml.experiment_config import ExperimentConfig
from health_ml.planning.plan import JobPlan
from health_ml.planning.provenance import GitState
from health_ml.planning.snapshot import Snapshot, snapshot_store_folder
from health_ml.planning.snapshot_store import SnapshotStore
from health_ml.records.encoding import encode_value
from health_ml.records.fan_out_report import FanOutReport
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
        """Returns the request as JSON that a person can read, with secrets masked."""
        shown = encode_value({"backend": self.backend, "request": self.body})
        return json.dumps(shown, indent=2, sort_keys=True)


class RunHandle(ABC):
    """A submitted run.

    :param run_id: Id of the run, with which any other process can get a handle of the same run.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    @property
    def finding_flags(self) -> tuple[str, ...]:
        """The flags that ``--attach`` and the like need besides the id, to look in the right place."""
        return ()

    def facts(self) -> dict[str, str]:
        """Returns what a user wants to know about where the run is, by a word for each: folder, page and so on."""
        return {}

    def report(self) -> FanOutReport | None:
        """Returns what the trials of a fan-out found so far; None for any other run, or if its log says that."""
        return None

    @abstractmethod
    def status(self) -> RunStatus:
        """Returns how the run stands now."""

    @abstractmethod
    def stream(self, write: Callable[[str], object]) -> None:
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


@dataclass(frozen=True)
class BackendContext:
    """What a back end is made for.

    :param target: The cluster, partition or queue that ``--cluster`` names, or "".
    :param project_root: Folder of the user's project.
    :param output_to: Folder of the runs, the value of ``--output_to``.
    :param config: Where and how to run.
    :param start_directory: Where the command was typed; None: the project root.
    """

    target: str
    project_root: Path
    output_to: Path | None = None
    config: ExperimentConfig = field(default_factory=ExperimentConfig)
    start_directory: Path | None = None


class Backend(ABC):
    """A place where plans run."""

    name: ClassVar[str]
    job_flags: ClassVar[frozenset[str]]
    """The flags about jobs that have an effect here; the others are refused."""
    idle_flags: ClassVar[frozenset[str]] = frozenset()
    """Further flags that have no effect here."""
    is_on_this_machine: ClassVar[bool] = False
    """True if jobs read the files of this machine, so that datasets and checkpoints are folders and files here."""
    warms_up: ClassVar[bool] = False
    """True if ``warm_up`` is worth a thread; ``create`` then has to be cheap and must not depend on the model."""
    max_trials: ClassVar[int | None] = None
    """Largest number of trials of one job, or None; a larger grid becomes several jobs."""
    needs_software: ClassVar[bool] = False
    """True if jobs run in an environment that has to be described; False if they use what is installed."""

    @classmethod
    @abstractmethod
    def create(cls, context: BackendContext) -> Backend:
        """Returns the back end for what the user asked for.

        :raises HimlError: If there is no such cluster, or no access to it.
        """

    def warm_up(self) -> None:
        """Does ahead, in a thread of its own, what ``submit`` will need. Raises nothing, and asks nobody anything."""
        return  # a back end that says warms_up has something to do here

    @abstractmethod
    def render(self, plan: JobPlan) -> Request:
        """Returns the request for a plan. Pure: touches no file and no network.

        :raises PlanError: If the plan asks for something that this back end cannot do.
        """

    def keep_code(self, snapshot: Snapshot, folder: Path) -> None:
        """Keeps the files of a snapshot for the job that is submitted next. Default: in the store of this user.

        :param folder: The folder that it was taken of.
        :raises SnapshotError: If files have changed since then.
        """
        SnapshotStore(snapshot_store_folder(process_environment())).store(snapshot, folder)

    @abstractmethod
    def submit(self, request: Request, *, git_state: GitState | None = None) -> RunHandle:
        """Returns a handle of the run after starting it.

        :param git_state: State of the code that travels, for the record of the run.
        :raises BackendError: If it was refused; nothing is left behind then.
        """

    @abstractmethod
    def attach(self, run_id: str) -> RunHandle:
        """Returns a handle of a run that was submitted before, also by another process.

        :raises RunNotFoundError: If there is no such run.
        """
