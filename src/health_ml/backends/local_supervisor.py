"""Runs one local job to its end: ``python -m health_ml.backends.local_supervisor RUN_FOLDER``.

The supervisor has a session of its own, so it survives the terminal that submitted the job. Every node is a process
group of its own, so that a node is ended together with everything that it started. It loads neither torch nor
Lightning.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from health_ml.backends.local_layout import LocalJob, LocalJobFolder
from health_ml.backends.trial_processes import kill_trials
from health_ml.environment import process_environment
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.records.process_identity import process_identity, signal_group
from health_ml.records.reader import read_record
from health_ml.records.record import RunRecord, RunStatus
from health_ml.settings import (
    ENV_ATTEMPT,
    ENV_PROJECT_ROOT,
    ENV_RUN_FOLDER,
    ENV_RUN_ID,
    ENV_START_DIRECTORY,
    RECORD_FOLDER,
)

GRACE_SECONDS = 30.0
"""How long a node may take to save its checkpoint after SIGTERM."""
PEER_SECONDS = 20.0
"""How long the other nodes may go on after one has failed."""
_POLL_SECONDS = 0.05


class Supervisor:
    """Starts the nodes of a job, watches them, and writes down how it ended.

    :param run_folder: Folder of the run, with a job in it.
    """

    def __init__(self, run_folder: Path) -> None:
        self.folder = LocalJobFolder(run_folder)
        self.job = self.folder.read_job()
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._is_stopping = False

    def run(self) -> int:
        """Returns 0 if every node returned 0, else 1."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        message = ""
        try:
            self._start_nodes()
            message = self._watch()
        except OSError as error:
            message = f"A node could not be started: {error}"
        finally:
            self._end_nodes(GRACE_SECONDS)
            codes = [node.returncode for node in self._nodes]
            self._write_end(codes, message)
        return 0 if codes and not any(codes) else 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True

    def _start_nodes(self) -> None:
        self._write_processes()  # whoever looks at the job has to know at any moment who starts processes for it
        port = free_port()
        for node in range(self.job.num_nodes):
            with self.folder.node_log(node).open("ab") as log:
                self._nodes.append(
                    subprocess.Popen(
                        self.job.command,
                        cwd=self.folder.code,
                        env=node_environment(self.job, self.folder.run_folder, node=node, port=port),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            self._write_processes()

    def _write_processes(self) -> None:
        nodes = [process_identity(node.pid) for node in self._nodes]
        self.folder.write_processes({"supervisor": process_identity(), "nodes": nodes})

    def _watch(self) -> str:
        """Returns why the job was stopped before its nodes ended by themselves, or an empty text."""
        started = time.monotonic()
        failed_at: float | None = None
        while any(node.poll() is None for node in self._nodes):
            now = time.monotonic()
            if self._is_stopping or self.folder.cancel_file.exists():
                return "The job was cancelled."
            limit = self.job.max_duration_seconds
            if limit is not None and now - started > limit:
                return f"The job ran longer than its limit of {limit:g} seconds (--max_run_duration)."
            if failed_at is None and any(node.returncode not in (None, 0) for node in self._nodes):
                failed_at = now
            if failed_at is not None and now - failed_at > PEER_SECONDS:
                return "A node failed, and the others did not end by themselves."
            time.sleep(_POLL_SECONDS)
        return ""

    def _end_nodes(self, grace_seconds: float) -> None:
        """Ends every process group that is still there: SIGTERM, and SIGKILL when the time is over."""
        for node in self._nodes:
            if node.poll() is None:
                signal_group(node.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while any(node.poll() is None for node in self._nodes) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        for node in self._nodes:
            # Also where the node itself has ended: its children are in the same group.
            signal_group(node.pid, signal.SIGKILL)
            node.wait()
        kill_trials(FanOutFolder(self.folder.run_folder))  # each has a session of its own

    def _write_end(self, codes: list[int | None], message: str) -> None:
        is_cancelled = self._is_stopping or self.folder.cancel_file.exists()
        self._write_status(codes, message, is_cancelled=is_cancelled)
        # Last, because whoever waits for the end reads the status then.
        self.folder.write_exit(exit_codes=codes, message=message, is_cancelled=is_cancelled)

    def _write_status(self, codes: list[int | None], message: str, *, is_cancelled: bool) -> None:
        recorded = self._recorded_status()
        if not (message or any(codes) or not codes) and recorded is RunStatus.FINISHED:
            return
        status = _final_status(recorded, is_cancelled=is_cancelled)
        if status is recorded and not message:
            return  # what the run itself has said is more precise
        record = RunRecord(self.folder.run_folder / RECORD_FOLDER, run_id=self.job.run_id, attempt=self.job.attempt)
        record.set_status(status, message or _what_failed(codes))
        record.close()

    def _recorded_status(self) -> RunStatus:
        return read_record(self.folder.run_folder / RECORD_FOLDER).status.status


def _what_failed(codes: list[int | None]) -> str:
    failed = next(((node, code) for node, code in enumerate(codes) if code), None)
    if failed is None:
        return "Every node ended with exit code 0, but the run has not said that it finished."
    return f"Node {failed[0]} ended with exit code {failed[1]}."


def _final_status(recorded: RunStatus, *, is_cancelled: bool) -> RunStatus:
    if is_cancelled:
        return RunStatus.CANCELLED
    # What the training itself said is more precise than an exit code.
    if recorded.is_final and recorded is not RunStatus.FINISHED:
        return recorded
    return RunStatus.FAILED


def node_environment(job: LocalJob, run_folder: Path, *, node: int, port: int) -> dict[str, str]:
    """Returns the environment variables of a node: those of this process, of the job, and where the node is."""
    environment = {
        **process_environment(),
        **job.environment,
        ENV_RUN_ID: job.run_id,
        ENV_RUN_FOLDER: str(run_folder),
        ENV_START_DIRECTORY: str(LocalJobFolder(run_folder).code),
        ENV_PROJECT_ROOT: job.project_root,
        ENV_ATTEMPT: str(job.attempt),
        "PYTHONUNBUFFERED": "1",
    }
    if job.num_nodes > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)}
    return environment


def free_port() -> int:
    """Returns a TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(Supervisor(Path(sys.argv[1]).absolute()).run())
