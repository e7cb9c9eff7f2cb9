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
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from health_ml.backends.base import Backend, BackendContext, Request, RunHandle
from health_ml.backends.fan_out import check_fan_out, check_one_node
from health_ml.backends.fan_out_job import fan_out_command, with_rerun
from health_ml.backends.local_layout import LocalJob, LocalJobFolder
from health_ml.backends.local_logs import LogFollower
from health_ml.backends.local_supervisor import GRACE_SECONDS
from health_ml.backends.run_facts import write_git_state
from health_ml.backends.run_folder import new_run_folder
from health_ml.backends.trial_processes import kill_trials
from health_ml.environment import process_environment
from health_ml.errors import BackendError, OutputError, PlanError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan
from health_ml.planning.provenance import GitState
from health_ml.planning.run_store import find_run_folder
from health_ml.planning.snapshot import snapshot_store_folder
from health_ml.planning.snapshot_store import SnapshotStore
from health_ml.records.process_identity import (
    end_group_of_dead,
    is_dead,
    is_running_here,
    process_identity,
    signal_group,
)
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
        """Returns the folder of the run, and why it has not finished if it says so."""
        view = read_record(self.run_folder / RECORD_FOLDER).status
        is_bad = view.status.is_final and view.status is not RunStatus.FINISHED
        return {"folder": str(self.run_folder), **({"reason": view.message} if is_bad and view.message else {})}

    def status(self) -> RunStatus:
        """Returns how the run stands; a job whose supervisor was killed before its end counts as KILLED."""
        keeper = self._keeper()
        is_kept = keeper is None or not is_dead(keeper)
        # Looked at after the processes, which may end between the looks.
        has_ended = self.folder.exit_file.exists()
        recorded = read_record(self.run_folder / RECORD_FOLDER).status.status
        if has_ended:
            return recorded
        if is_kept:  # the nodes may have ended, but the supervisor has yet to say how
            return recorded if not recorded.is_final else RunStatus.RUNNING
        has_nodes = bool(_living_nodes(self.folder.read_processes()))
        return recorded if recorded.is_final and not has_nodes else RunStatus.KILLED

    def _keeper(self) -> dict[str, Any] | None:
        """Returns the identity of the process that looks after the job: its supervisor, or who is starting that."""
        processes = self.folder.read_processes()
        keeper: dict[str, Any] | None = processes.get("supervisor") or processes.get("starter")
        return keeper

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
        keeper = self._keeper()
        if keeper is None or is_dead(keeper):
            self._end_orphans(self.folder.read_processes())
        elif not self.wait(GRACE_SECONDS + 10).is_final:
            raise BackendError(
                f"Run {self.run_id} has not ended {GRACE_SECONDS + 10:g} seconds after it was cancelled.",
                f"Its supervisor is process {keeper['pid']}; its log is {self.folder.supervisor_log}.",
            )
        elif self.status() is RunStatus.KILLED:  # just now
            self._end_orphans(self.folder.read_processes())

    def _end_orphans(self, processes: dict[str, object]) -> None:
        """Ends the nodes of a job whose supervisor was killed, and says so in the record."""
        end_nodes(processes)
        kill_trials(FanOutFolder(self.run_folder))
        before = read_record(self.run_folder / RECORD_FOLDER).status
        record = RunRecord(self.run_folder / RECORD_FOLDER, run_id=self.run_id, attempt=before.attempt)
        message = "The job was cancelled after its supervisor had been killed."
        record.set_status(RunStatus.CANCELLED, message)
        record.close()
        self.folder.write_exit(exit_codes=[], message=message, is_cancelled=True)

    def download(self, pattern: str, target: Path) -> list[Path]:
        """Returns the run's files whose relative path matches a glob pattern, copied below the target folder.

        The code that the job ran from is not part of its results and is left out, and so are links to what is not in
        the run folder.
        """
        copied = []
        inside = self.run_folder.resolve()
        for folder, folders, files in os.walk(self.run_folder):
            here = Path(folder)
            if here == self.run_folder:
                folders[:] = [name for name in folders if here / name != self.folder.code]
            for name in sorted(files):
                relative = (here / name).relative_to(self.run_folder)
                is_here = (here / name).resolve().is_relative_to(inside)
                if is_here and fnmatch.fnmatch(relative.as_posix(), pattern):
                    destination = target / relative
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    copied.append(Path(shutil.copy2(here / name, destination)))
        return sorted(copied)


def end_nodes(processes: dict[str, object]) -> None:
    """Ends the nodes of a job whose supervisor was killed: SIGTERM, and SIGKILL when the time is over."""
    alive = _living_nodes(processes)
    for node in alive:
        signal_group(node["pid"], signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(not is_dead(node) for node in alive) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for node in alive:
        signal_group(node["pid"], signal.SIGKILL)  # also what a node has left that has ended
    for node in _nodes(processes):
        end_group_of_dead(node)


def _living_nodes(processes: dict[str, object]) -> list[dict[str, Any]]:
    return [node for node in _nodes(processes) if is_running_here(node)]


def _nodes(processes: dict[str, object]) -> list[dict[str, Any]]:
    nodes = processes.get("nodes")
    return nodes if isinstance(nodes, list) else []


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
        """Returns the command and the environment of every node, or of every trial of a fan-out.

        :raises PlanError: If the trials of a fan-out are to run on several nodes.
        """
        search = {}
        if plan.search_space is not None:
            check_one_node(plan)
            search = {"search_space": plan.search_space.to_json(), "num_trials": plan.search_space.trial_count}
        body = {
            "command": ["himl-runner", *plan.argv],
            **search,
            "num_nodes": plan.num_nodes,
            "max_duration_seconds": plan.limits.max_run_seconds,
            "environment": plan.environment,
            "snapshot": plan.snapshot_hash,
        }
        return Request(self.name, plan, body)

    def submit(self, request: Request, *, git_state: GitState | None = None) -> LocalRunHandle:
        """Returns a handle of the job, whose supervisor runs on its own from now on."""
        plan = request.plan
        if plan.search_space is not None:
            check_fan_out(plan)
        parent = self._output_to or self._project_root / OUTPUTS_FOLDER
        run_folder = new_run_folder(parent, plan.model_name)
        folder = LocalJobFolder(run_folder)
        try:
            self._prepare(folder, plan, git_state)
            with folder.starting() as lock:
                self._start_supervisor(folder, lock)
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

    def resume(self, run_id: str, *, is_rerunning_failed: bool = False) -> LocalRunHandle:
        """Returns a handle of a job after starting it again in its folder, unless it is running or has finished.

        A single run continues from its checkpoint. Of a fan-out, trials that still run are followed, those that have
        ended are not repeated, and the others continue from their checkpoints.

        :param is_rerunning_failed: True to run the failed trials of a fan-out again.
        :raises RunNotFoundError: If there is no such run.
        :raises BackendError: If the run was not submitted as a job, or cannot be started.
        """
        handle = self.attach(run_id)
        if _needs_nothing(handle):
            return handle
        folder = handle.folder
        with folder.starting() as lock:
            if _needs_nothing(handle):  # another process was faster
                return handle
            job = folder.read_job()
            if FanOutFolder(folder.run_folder).exists:
                # Only the scheduler: the trials go on, and the next scheduler follows them.
                _kill_schedulers(folder)
                job = replace(job, command=with_rerun(job.command, is_rerunning_failed=is_rerunning_failed))
            else:
                end_nodes(folder.read_processes())
            attempt = read_record(folder.run_folder / RECORD_FOLDER).status.attempt + 1
            folder.write_job(replace(job, attempt=attempt))
            folder.write_processes({"starter": process_identity()})
            record = RunRecord(folder.run_folder / RECORD_FOLDER, run_id=run_id, attempt=attempt)
            record.set_status(RunStatus.QUEUED)
            record.close()
            for file in (folder.exit_file, folder.cancel_file):
                file.unlink(missing_ok=True)
            self._start_supervisor(folder, lock)
        return handle

    def _prepare(self, folder: LocalJobFolder, plan: JobPlan, git_state: GitState | None) -> None:
        job = LocalJob(
            run_id=folder.run_folder.name,
            command=_command(plan),
            project_root=str(self._project_root.absolute()),
            num_nodes=plan.num_nodes,
            max_duration_seconds=plan.limits.max_run_seconds,
            environment=plan.environment,
        )
        try:
            folder.job.mkdir(parents=True)
            folder.code.mkdir()
        except OSError as error:
            raise OutputError(f"Cannot write {folder.job}: {error.strerror}.", "Free some space.") from error
        folder.write_job(job)
        folder.write_processes({"starter": process_identity()})
        self._place_code(plan, folder.code)
        record = RunRecord.create(folder.run_folder / RECORD_FOLDER, run_id=job.run_id, status=RunStatus.QUEUED)
        record.write_document(RECORD_PLAN_DOCUMENT, plan.to_json())
        if git_state is not None:
            write_git_state(record, git_state)
        record.close()
        if plan.search_space is not None:
            FanOutFolder(folder.run_folder).trials_file.touch()

    @staticmethod
    def _start_supervisor(folder: LocalJobFolder, lock: int) -> None:
        with folder.supervisor_log.open("ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "health_ml.backends.local_supervisor", str(folder.run_folder)],
                cwd=folder.run_folder,
                env=process_environment(),
                pass_fds=[lock],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        num_nodes = folder.read_job().num_nodes
        while len(_nodes(folder.read_processes())) < num_nodes:
            if supervisor.poll() is not None or time.monotonic() > deadline:
                supervisor.terminate()  # it ends the nodes that it has started
                supervisor.wait()
                text = folder.supervisor_log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
                reason = text or read_record(folder.run_folder / RECORD_FOLDER).status.message
                raise BackendError(f"The job could not be started: {reason}", "Try again.")
            time.sleep(0.02)


def _needs_nothing(handle: LocalRunHandle) -> bool:
    """True if a job runs or has done everything."""
    status = handle.status()
    return status is RunStatus.FINISHED or not status.is_final


def _kill_schedulers(folder: LocalJobFolder) -> None:
    """Ends the scheduler of a fan-out whose supervisor was killed, and waits until it has."""
    alive = _living_nodes(folder.read_processes())
    deadline = time.monotonic() + GRACE_SECONDS
    while alive and time.monotonic() < deadline:
        for node in alive:
            signal_group(node["pid"], signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
        alive = _living_nodes(folder.read_processes())


def _command(plan: JobPlan) -> tuple[str, ...]:
    if plan.search_space is not None:
        return fan_out_command(plan.argv)
    return (sys.executable, "-m", "health_ml.runner", *plan.argv)


def place_snapshot(plan: JobPlan, folder: Path) -> None:
    """Unpacks the snapshot of a plan into an empty folder.

    :raises SnapshotError: If the store of this user does not hold it.
    """
    if not plan.snapshot_hash:
        return
    store = SnapshotStore(snapshot_store_folder(process_environment()))
    store.materialise(store.load(plan.snapshot_hash), folder)
