"""Executes one job as AzureML does: its processes, its logs and outputs, and what happens when it is preempted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.azureml.node import (
    Data,
    Launch,
    fetch_code,
    job_variables,
    launches,
    prepare_data,
    remove_mounts,
    substituted,
)
from tests.azureml.resources import seconds
from tests.azureml.state import ARTIFACT_CONTAINER, Job, now

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

POLL_SECONDS = 0.05
SYNC_SECONDS = 0.5
COLLECTED = ("outputs", "logs")
LAST_LINES = 20


class Execution:
    """One job on its way from queued to its end, through one attempt or more.

    :param folder: Where the nodes of this job are.
    """

    def __init__(self, cloud: Cloud, job: Job, folder: Path) -> None:
        self._cloud = cloud
        self._job = job
        self._folder = folder
        self._is_preempted = threading.Event()

    def preempt(self) -> None:
        """Takes the nodes away from the job, which starts again on new ones."""
        self._is_preempted.set()

    def run(self) -> None:
        """Runs the job until it has ended."""
        job = self._job
        try:
            while not job.is_final:
                attempt = Attempt(self._cloud, job, self._folder / f"attempt_{job.attempt}", self._is_preempted)
                status = attempt.run()
                if status == "Preempted":
                    self._is_preempted.clear()
                    job.attempt += 1
                    job.status = "Queued"
                else:
                    self._finish(status)
        except Exception as error:  # what goes wrong here fails the job, and with it the test that waits for it
            job.error = f"The stand-in could not run the job: {error!r}"
            self._finish("Failed")
            raise
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self, status: str) -> None:
        self._job.ended = now()
        self._cloud.mlflow.end_run(self._job.name, status)
        self._job.status = status


class Attempt:
    """One start of a job on fresh nodes."""

    def __init__(self, cloud: Cloud, job: Job, folder: Path, is_preempted: threading.Event) -> None:
        self._cloud = cloud
        self._job = job
        self._folder = folder
        self._is_preempted = is_preempted
        self._processes: list[tuple[Launch, subprocess.Popen[bytes], Path]] = []
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._data = Data()

    def run(self) -> str:
        """Returns how the attempt ended: a final status, or ``Preempted``."""
        job = self._job
        job.status = "Preparing"
        planned = launches(job)
        self._data = prepare_data(self._cloud, job, self._folder / "data")
        try:
            for node in sorted({launch.node for launch in planned}):
                fetch_code(self._cloud, job, self._working_directory(node))
            job.started = job.started or now()
            job.status = "CancelRequested" if job.is_cancel_requested else "Running"
            self._start(planned)
            status = self._wait()
            if status != "Preempted":
                job.status = "Finalizing"
            self._collect()
        finally:
            self._end_processes(0.0)
            remove_mounts(self._data)
        job.exit_codes = [process.returncode for _, process, _ in self._processes]
        if status == "Failed":
            job.error = self._failure()
        return status

    def _working_directory(self, node: int) -> Path:
        return self._folder / f"node_{node}" / "wd"

    def _start(self, planned: list[Launch]) -> None:
        command = substituted(self._job.body["command"], self._data)
        for launch in planned:
            directory = self._working_directory(launch.node)
            home = directory.parent / "home"
            for folder in (home, *(directory / name for name in COLLECTED)):
                folder.mkdir(parents=True, exist_ok=True)
            variables = job_variables(self._cloud, self._job, home) | self._data.variables | launch.variables
            log = directory.parent / launch.log_name
            log.parent.mkdir(exist_ok=True)
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    ["/bin/bash", "-c", command], cwd=directory, env=variables, stdin=subprocess.DEVNULL,
                    stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            self._processes.append((launch, process, log))

    def _wait(self) -> str:
        """Returns how the processes ended; a failure of one ends the others."""
        deadline = time.monotonic() + seconds((self._job.body.get("limits") or {}).get("timeout"))
        next_sync = time.monotonic()
        while True:
            if self._job.is_cancel_requested:
                self._end_processes(self._cloud.grace_seconds)
                return "Canceled"
            if self._is_preempted.is_set():
                self._end_processes(self._cloud.grace_seconds)
                return "Preempted"
            if time.monotonic() > deadline:
                self._job.error = "The job ran longer than its limit."
                self._end_processes(self._cloud.grace_seconds)
                return "Canceled"
            codes = [process.poll() for _, process, _ in self._processes]
            if any(codes):
                self._end_processes(self._cloud.grace_seconds)
                return "Failed"
            if None not in codes:
                return "Completed"
            if time.monotonic() > next_sync:
                self._collect()
                next_sync = time.monotonic() + SYNC_SECONDS
            time.sleep(POLL_SECONDS)

    def _end_processes(self, grace: float) -> None:
        """Asks all processes of the job to end, and kills those that did not within the time."""
        deadline = time.monotonic() + grace
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            for _, process, _ in self._processes:
                if wanted == signal.SIGKILL or process.poll() is None:
                    # Also what a finished process left running: the node goes away.
                    _signal_group(process, wanted)
            while wanted == signal.SIGTERM and time.monotonic() < deadline and self._has_running():
                time.sleep(POLL_SECONDS)
        for _, process, _ in self._processes:
            process.wait()

    def _has_running(self) -> bool:
        return any(process.poll() is None for _, process, _ in self._processes)

    def _collect(self) -> None:
        """Uploads the logs, ``outputs`` and ``logs`` of all nodes, and the named outputs, where they changed."""
        retry = f"retry_{self._job.attempt:03}/" if self._job.attempt else ""
        prefix = self._job.artifact_prefix
        for launch, _, log in self._processes:
            folder, name = launch.log_name.split("/")
            self._upload(log, ARTIFACT_CONTAINER, f"{prefix}{folder}/{retry}{name}")
        for node in sorted({launch.node for launch, _, _ in self._processes}):
            for name in COLLECTED:
                self._upload_folder(self._working_directory(node) / name, ARTIFACT_CONTAINER, f"{prefix}{name}/{retry}")
        for folder, place in self._data.outputs.items():
            self._upload_folder(folder, place.container, place.path.rstrip("/") + "/")

    def _upload_folder(self, folder: Path, container: str, prefix: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self._upload(file, container, prefix + file.relative_to(folder).as_posix())

    def _upload(self, file: Path, container: str, name: str) -> None:
        try:
            facts = file.stat()
            stamp = (facts.st_mtime_ns, facts.st_size)
            if self._uploaded.get(file) != stamp:
                self._cloud.azurite.write(container, name, file.read_bytes())
                self._uploaded[file] = stamp
        except FileNotFoundError:
            # The job removed or renamed it in this moment.
            return

    def _failure(self) -> str:
        failed = [entry for entry in self._processes if entry[1].returncode]
        launch, process, log = failed[0]
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return (
            f"Execution failed. User process '/bin/bash' exited with status code {process.returncode}. Please check "
            f"log file '{launch.log_name}' for error details. Error: " + "\n".join(lines)
        )


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
