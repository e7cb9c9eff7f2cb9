"""Runs plans on this machine exactly as a cluster would: from a snapshot, detached, in a folder of their own.

A submitted job belongs to its supervisor (:mod:`health_ml.backends.local_supervisor`), a process with a session of
its own. This module only writes what the supervisor has to know, and reads what it and the job have written.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

from health_ml.backends.base import Backend, BackendContext, Request, RunHandle
from health_ml.backends.local_layout import LocalJob, LocalJobFolder
from health_ml.backends.local_logs import LogFollower
from health_ml.backends.local_supervisor import GRACE_SECONDS, signal_group
from health_ml.backends.run_facts import write_git_state
from health_ml.backends.run_folder import make_unique_folder
from health_ml.environment import process_environment
from health_ml.errors import BackendError, OutputError, PlanError
from health_ml.planning.plan import JobPlan
from health_ml.planning.provenance import GitState
from health_ml.planning.run_store import find_run_folder
from health_ml.planning.snapshot import snapshot_store_folder
from health_ml.planning.snapshot_store import SnapshotStore
from health_ml.records.process_identity import is_dead
from health_ml.records.reader import read_record
from health_ml.records.record import RunRecord, RunStatus
from health_ml.settings import OUTPUTS_FOLDER, RECORD_FOLDER, RECORD_PLAN_DOCUMENT

_POLL_SECONDS = 0.1
_START_SECONDS = 30.0


class LocalRunHandle(RunHandle):
    """A job on this machine. Several processes may hold a handle of the same one.

    :param run_folder: Folder of the run.
    """

    def __init__(self, run_folder: Path) -> None:
        super().__init__(run_folder.name)
        self.folder = LocalJobFolder(run_folder)

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.folder.run_folder

    def facts(self) -> dict[str, str]:
        """Returns the folder of the run."""
        return {"folder": str(self.run_folder)}

    def status(self) -> RunStatus:
        """Returns how the run stands; a job whose supervisor was killed counts as KILLED."""
        recorded = read_record(self.run_folder / RECORD_FOLDER).status.status
        if self.folder.exit_file.exists():
            return recorded
        supervisor = self.folder.read_processes().get("supervisor")
        if supervisor is not None and is_dead(supervisor):
            # It may have ended between the two looks.
            return recorded if self.folder.exit_file.exists() else RunStatus.KILLED
        # The nodes have ended, but the supervisor has yet to say how.
        return recorded if not recorded.is_final else RunStatus.RUNNING

    def stream(self, write: Callable[[str], object]) -> None:
        """Hands every line of all nodes' logs to ``write``, prefixed with the node where there are several."""
        follower = LogFollower(self.folder, self.folder.read_job().num_nodes)
        while not self.status().is_final:
            if not follower.forward(write):
                time.sleep(_POLL_SECONDS)
        follower.forward(write)
        follower.flush(write)

    def wait(self, timeout_seconds: float | None = None) -> RunStatus:
        """Returns the status once the run has ended, or the present one when the time is over."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (status := self.status()).is_final:
            if deadline is not None and time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
        return status

    def cancel(self) -> None:
        """Ends the supervisor, every node, and everything that they started.

        :raises BackendError: If something is still running when the time to save a checkpoint is over.
        """
        if self.status().is_final and self.folder.exit_file.exists():
            return
        self.folder.cancel_file.touch()
        processes = self.folder.read_processes()
        supervisor = processes.get("supervisor")
        if supervisor is None or is_dead(supervisor):
            self._end_orphans(processes)
        elif not self.wait(GRACE_SECONDS + 10).is_final:
            raise BackendError(
                f"Run {self.run_id} has not ended {GRACE_SECONDS + 10:g} seconds after it was cancelled.",
                f"Its supervisor is process {supervisor['pid']}; its log is {self.folder.job}.",
            )

    def _end_orphans(self, processes: dict[str, object]) -> None:
        """Ends the nodes of a job whose supervisor was killed, and says so in the record."""
        nodes = processes.get("nodes")
        alive = [node for node in nodes if not is_dead(node)] if isinstance(nodes, list) else []
        for node in alive:
            signal_group(node["pid"], signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(not is_dead(node) for node in alive) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        for node in alive:
            signal_group(node["pid"], signal.SIGKILL)
        record = RunRecord(self.run_folder / RECORD_FOLDER, run_id=self.run_id)
        record.set_status(RunStatus.CANCELLED, "The job was cancelled after its supervisor had been killed.")
        record.close()

    def download(self, pattern: str, target: Path) -> list[Path]:
        """Returns the run's files whose relative path matches a glob pattern, copied below the target folder.

        The code that the job ran from is not part of its results and is left out.
        """
        copied = []
        for folder, folders, files in os.walk(self.run_folder):
            here = Path(folder)
            if here == self.run_folder:
                folders[:] = [name for name in folders if here / name != self.folder.code]
            for name in sorted(files):
                relative = (here / name).relative_to(self.run_folder)
                if fnmatch.fnmatch(relative.as_posix(), pattern):
                    destination = target / relative
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    copied.append(Path(shutil.copy2(here / name, destination)))
        return sorted(copied)


class LocalBackend(Backend):
    """Runs plans in processes of this machine.

    :param project_root: Folder whose ``outputs`` folder holds the runs, unless ``output_to`` names another one.
    :param output_to: Folder that holds the runs.
    :param place_code: Puts the files of the plan's snapshot into an empty folder. Default: from the store of this user.
    """

    name: ClassVar[str] = "local"
    job_flags: ClassVar[frozenset[str]] = frozenset({"wait_for_completion", "max_run_duration"})
    is_on_this_machine: ClassVar[bool] = True

    def __init__(
        self,
        project_root: Path,
        *,
        output_to: Path | None = None,
        place_code: Callable[[JobPlan, Path], None] | None = None,
    ) -> None:
        self._project_root = project_root
        self._output_to = output_to
        self._place_code = place_code or place_snapshot

    @classmethod
    def create(cls, context: BackendContext) -> LocalBackend:
        """Returns the back end for the project of the user.

        :raises PlanError: If a cluster was named: there is only this machine.
        """
        if context.target:
            raise PlanError(
                f"--cluster=local:{context.target}: the back end 'local' is this machine and has no clusters.",
                "Use --cluster=local.",
            )
        return cls(context.project_root, output_to=context.output_to)

    def render(self, plan: JobPlan) -> Request:
        """Returns the command and the environment of every node."""
        body = {
            "command": ["himl-runner", *plan.argv],
            "num_nodes": plan.num_nodes,
            "max_duration_seconds": plan.limits.max_run_seconds,
            "environment": plan.environment,
            "snapshot": plan.snapshot_hash,
        }
        return Request(self.name, plan, body)

    def submit(self, request: Request, *, git_state: GitState | None = None) -> LocalRunHandle:
        """Returns a handle of the job, whose supervisor runs on its own from now on."""
        plan = request.plan
        parent = self._output_to or self._project_root / OUTPUTS_FOLDER
        run_folder = make_unique_folder(parent, plan.model_name, now=datetime.now(timezone.utc))
        folder = LocalJobFolder(run_folder)
        try:
            self._prepare(folder, plan, git_state)
            self._start_supervisor(folder)
        except BaseException:
            # A submission that fails half-way leaves nothing and can simply be repeated.
            shutil.rmtree(run_folder, ignore_errors=True)
            raise
        return LocalRunHandle(run_folder)

    def attach(self, run_id: str) -> LocalRunHandle:
        """Returns a handle of a job that any process of this machine has submitted.

        :raises RunNotFoundError: If there is no such run.
        :raises BackendError: If the run was not submitted as a job.
        """
        run_folder = find_run_folder(run_id, project_root=self._project_root, output_to=self._output_to)
        handle = LocalRunHandle(run_folder)
        handle.folder.read_job()
        return handle

    def _prepare(self, folder: LocalJobFolder, plan: JobPlan, git_state: GitState | None) -> None:
        job = LocalJob(
            run_id=folder.run_folder.name,
            command=(sys.executable, "-m", "health_ml.runner", *plan.argv),
            project_root=str(self._project_root.absolute()),
            num_nodes=plan.num_nodes,
            max_duration_seconds=plan.limits.max_run_seconds,
            environment=plan.environment,
        )
        try:
            folder.job.mkdir(parents=True)
            folder.code.mkdir()
            folder.job_file.write_text(job.to_json(), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"Cannot write {folder.job}: {error.strerror}.", "Free some space.") from error
        self._place_code(plan, folder.code)
        record = RunRecord.create(folder.run_folder / RECORD_FOLDER, run_id=job.run_id)
        record.set_status(RunStatus.QUEUED)
        record.write_document(RECORD_PLAN_DOCUMENT, plan.to_json())
        if git_state is not None:
            write_git_state(record, git_state)
        record.close()

    @staticmethod
    def _start_supervisor(folder: LocalJobFolder) -> None:
        with (folder.job / "supervisor.log").open("ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "health_ml.backends.local_supervisor", str(folder.run_folder)],
                cwd=folder.run_folder,
                env=process_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not folder.processes_file.exists():
            if supervisor.poll() is not None or time.monotonic() > deadline:
                supervisor.kill()
                supervisor.wait()
                text = (folder.job / "supervisor.log").read_text(encoding="utf-8", errors="replace")
                raise BackendError(f"The job could not be started: {text.strip()[-2000:]}", "Try again.")
            time.sleep(0.02)


def place_snapshot(plan: JobPlan, folder: Path) -> None:
    """Unpacks the snapshot of a plan into an empty folder.

    :raises SnapshotError: If the store of this user does not hold it.
    """
    if not plan.snapshot_hash:
        return
    store = SnapshotStore(snapshot_store_folder(process_environment()))
    store.materialise(store.load(plan.snapshot_hash), folder)
