"""A back end that runs nothing: for tests of code that submits experiments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from health_ml.backends.base import Backend, BackendContext, Request, RunHandle
from health_ml.errors import RunNotFoundError, did_you_mean
from health_ml.experiment_config import JOB_FLAGS
from health_ml.planning.plan import JobPlan
from health_ml.planning.provenance import GitState
from health_ml.records.record import RunStatus


class MemoryRunHandle(RunHandle):
    """A pretended run. A test says with :meth:`write_line` and :meth:`end` what happens in it.

    :param run_id: Id of the run.
    :param request: What was submitted.
    """

    def __init__(self, run_id: str, request: Request) -> None:
        super().__init__(run_id)
        self.request = request
        self.files: dict[str, bytes] = {}
        self._status = RunStatus.RUNNING
        self._lines: list[str] = []
        self._changed = threading.Condition()

    def status(self) -> RunStatus:
        """Returns RUNNING until the test ends the run."""
        return self._status

    def write_line(self, line: str) -> None:
        """Adds a line to the run's log."""
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    def end(self, status: RunStatus = RunStatus.FINISHED) -> None:
        """Ends the run, unless it has ended already."""
        with self._changed:
            if not self._status.is_final:
                self._status = status
            self._changed.notify_all()

    def stream(self, write: Callable[[str], object]) -> None:
        """Hands every line to ``write``, until the test ends the run."""
        position = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda seen=position: len(self._lines) > seen or self._status.is_final)  # type: ignore[misc]
                lines, is_over = self._lines[position:], self._status.is_final
            for line in lines:
                write(line)
            position += len(lines)
            if is_over and position == len(self._lines):
                return

    def wait(self, timeout_seconds: float | None = None) -> RunStatus:
        """Returns the status once the test has ended the run, or the present one when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._status.is_final, timeout_seconds)
        return self._status

    def cancel(self) -> None:
        """Ends the run with the status CANCELLED."""
        self.end(RunStatus.CANCELLED)

    def download(self, pattern: str, target: Path) -> list[Path]:
        """Returns the files that the test put into ``files`` and that match, written below the target folder."""
        from fnmatch import fnmatch

        copied = []
        for name, content in sorted(self.files.items()):
            if fnmatch(name, pattern):
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                copied.append(path)
        return copied


class MemoryBackend(Backend):
    """Keeps what was submitted in a list and runs none of it.

    :param on_submit: Called with every new run, for example to end it at once.
    """

    name: ClassVar[str] = "memory"
    job_flags: ClassVar[frozenset[str]] = JOB_FLAGS

    @classmethod
    def create(cls, context: BackendContext) -> MemoryBackend:
        """Returns a new back end. :func:`health_ml.testing.memory_backend` gives every command the same one."""
        return cls()

    def __init__(self, on_submit: Callable[[MemoryRunHandle], None] | None = None) -> None:
        self.runs: list[MemoryRunHandle] = []
        self._on_submit = on_submit

    def render(self, plan: JobPlan) -> Request:
        """Returns the plan itself as the request."""
        return Request(self.name, plan, plan.to_json())

    def submit(self, request: Request, *, git_state: GitState | None = None) -> MemoryRunHandle:
        """Returns a handle of a pretended run."""
        handle = MemoryRunHandle(f"memory_{len(self.runs)}", request)
        self.runs.append(handle)
        if self._on_submit is not None:
            self._on_submit(handle)
        return handle

    def attach(self, run_id: str) -> MemoryRunHandle:
        """Returns the handle of a run that was submitted to this object."""
        by_id = {run.run_id: run for run in self.runs}
        if run_id not in by_id:
            raise RunNotFoundError(
                f"No run has the id {run_id!r}.", did_you_mean(run_id, by_id) or "Nothing was submitted under that id."
            )
        return by_id[run_id]
