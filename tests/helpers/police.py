"""The test police: a test that leaves something behind fails, and what it left is put right for the next test.

Loaded by ``tests/conftest.py``; every fixture here applies to every test by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SESSION_MARK = "HIML_TEST_SESSION"
"""Every process that a test starts inherits this variable, so that orphans can be found."""

GRACE_SECONDS = 3.0
"""How long threads and processes may take to end after the test did."""

CACHES = frozenset(
    {".git", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache",
     ".hypothesis", "_build", ".fuzz", "build", "dist", "node_modules"}
)  # fmt: skip
"""Folders that tools fill beside the tests."""

LIBRARY_THREADS = ("tqdm_monitor", "TMonitor", "pytest_timeout", "pydevd", "IPythonHistory", "execnet")
"""Threads that a library starts once and keeps for the life of the process."""

LIBRARY_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Helper processes that the standard library keeps for the life of the process."""

LIBRARY_VARIABLES = frozenset({"PYTEST_CURRENT_TEST", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK", "TF2_BEHAVIOR",
                               "TORCHINDUCTOR_CACHE_DIR", "CUDA_MODULE_LOADING", "COLUMNS", "LINES",
                               "PYTORCH_NVML_BASED_CUDA_CHECK"})  # fmt: skip
"""Variables that pytest or an import sets."""


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LIBRARY_VARIABLES}


def _handlers() -> dict[str, list[logging.Handler]]:
    """Returns the handlers of the root logger and of ours; pytest's own come and go with the phases of a test."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "health_ml"]
    loggers = [logging.root, *(logging.getLogger(name) for name in names)]
    return {
        logger.name: [handler for handler in logger.handlers if not type(handler).__module__.startswith("_pytest")]
        for logger in loggers
    }


def _signals() -> dict[signal.Signals, Any]:
    """Returns the handler of each signal; SIGALRM belongs to pytest-timeout."""
    return {
        number: signal.getsignal(number)
        for number in signal.valid_signals()
        if isinstance(number, signal.Signals) and number is not signal.SIGALRM
    }


def _children() -> set[int]:
    """Returns the ids of the direct children, from the kernel's list: a walk of all processes takes far longer."""
    try:
        tasks = list(Path("/proc/self/task").iterdir())
        return {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:
        return {child.pid for child in psutil.Process().children()}


def _names(folder: Path) -> frozenset[str]:
    return frozenset(name for name in os.listdir(folder) if name not in CACHES and not name.startswith(".coverage"))


@dataclass
class Scene:
    """What a test can leave behind, as it is now."""

    directory: Path = field(default_factory=Path.cwd)
    variables: dict[str, str] = field(default_factory=_variables)
    path: list[str] = field(default_factory=lambda: list(sys.path))
    handlers: dict[str, list[logging.Handler]] = field(default_factory=_handlers)
    signals: dict[signal.Signals, Any] = field(default_factory=_signals)
    threads: set[threading.Thread] = field(default_factory=lambda: set(threading.enumerate()))
    children: set[int] = field(default_factory=_children)

    def __post_init__(self) -> None:
        self.files = _names(self.directory)

    def restore_and_report(self) -> list[str]:
        """Returns what differs now, one sentence per kind, and puts it back."""
        reports = [
            self._check_directory(),
            self._check_variables(),
            self._check_path(),
            self._check_handlers(),
            self._check_signals(),
            self._check_process_group(),
            self._check_threads(),
            self._check_children(),
        ]
        return [report for report in reports if report]

    def _check_directory(self) -> str:
        now = Path.cwd()
        os.chdir(self.directory)
        if now != self.directory:
            return f"the working directory changed to {now}"
        new = sorted(_names(self.directory) - self.files)
        return f"new in {self.directory}: {', '.join(new)}" if new else ""

    def _check_variables(self) -> str:
        now = _variables()
        changed = sorted(name for name in {*now, *self.variables} if now.get(name) != self.variables.get(name))
        for name in changed:
            if name in self.variables:
                os.environ[name] = self.variables[name]
            else:
                del os.environ[name]
        return f"environment variables changed: {', '.join(changed)}" if changed else ""

    def _check_path(self) -> str:
        changed = [entry for entry in sys.path if entry not in self.path]
        is_changed = sys.path != self.path
        sys.path[:] = self.path
        return f"sys.path changed: {', '.join(changed) or 'entries removed or moved'}" if is_changed else ""

    def _check_handlers(self) -> str:
        leaked = []
        for name, handlers in _handlers().items():
            for handler in handlers:
                if handler not in self.handlers.get(name, []):
                    logging.getLogger(name).removeHandler(handler)
                    leaked.append(f"{handler!r} of logger {name}")
        return f"logging handlers stayed: {', '.join(leaked)}" if leaked else ""

    def _check_signals(self) -> str:
        changed = [number for number, handler in _signals().items() if handler is not self.signals[number]]
        changed = [number for number in changed if signal.getsignal(number) != self.signals[number]]
        for number in changed:
            signal.signal(number, self.signals[number])
        return f"signal handlers changed: {', '.join(number.name for number in changed)}" if changed else ""

    def _check_process_group(self) -> str:
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return ""
        distributed.destroy_process_group()
        return "the process group of torch.distributed stayed"

    def _check_threads(self) -> str:
        leaked = list(_live_threads(set(threading.enumerate()) - self.threads))
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in leaked:
            thread.join(max(0.0, deadline - time.monotonic()))
        leaked = list(_live_threads(leaked))
        return f"threads stayed: {', '.join(thread.name for thread in leaked)}" if leaked else ""

    def _check_children(self) -> str:
        new = _children() - self.children
        return _end_and_describe(_live_processes(new), "child processes stayed") if new else ""


def _live_threads(threads: Iterable[threading.Thread]) -> Iterator[threading.Thread]:
    for thread in threads:
        is_known = any(known in f"{thread.name} {type(thread).__name__}" for known in LIBRARY_THREADS)
        if thread.is_alive() and not is_known:
            yield thread


def _live_processes(process_ids: Iterable[int]) -> list[tuple[psutil.Process, str]]:
    """Returns the processes that run, with their command lines; ended ones that wait to be reaped do not count."""
    found = []
    for process_id in process_ids:
        try:
            process = psutil.Process(process_id)
            command = " ".join(process.cmdline())
            is_running = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if is_running and not any(known in command for known in LIBRARY_PROCESSES):
            found.append((process, command))
    return found


def _end_and_describe(found: list[tuple[psutil.Process, str]], what: str) -> str:
    """Waits for the processes to end, kills those that do not, and returns what had to be killed."""
    _, alive = psutil.wait_procs([process for process, _ in found], timeout=GRACE_SECONDS)
    commands = {process.pid: command for process, command in found}
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)
    described = [f"{process.pid} ({commands[process.pid][:200]})" for process in alive]
    return f"{what}: {', '.join(described)}" if described else ""


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that leaks anything that the next test could see."""
    scene = Scene()
    yield
    reports = scene.restore_and_report()
    if reports:
        pytest.fail("The test left something behind: " + "; ".join(reports) + ".", pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def module_leaves_nothing_behind(session_mark: str) -> Iterator[None]:
    """Fails a module whose tests left files anywhere in the repository, or processes that lost their parent."""
    before = repository_files()
    yield
    reports = [_end_and_describe(_live_processes(_orphans(session_mark)), "processes without a parent stayed")]
    new = sorted(repository_files() - before)
    if new:
        reports.append(f"new files in the repository: {', '.join(new[:20])} (made by you just now? then run again)")
    reports = [report for report in reports if report]
    if reports:
        pytest.fail("The module left something behind: " + "; ".join(reports) + ".", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def session_mark() -> Iterator[str]:
    """Returns the value by which processes that these tests start are known."""
    mark = f"{os.getpid()}-{time.time_ns()}"
    os.environ[SESSION_MARK] = mark
    yield mark
    os.environ.pop(SESSION_MARK, None)


def repository_files() -> frozenset[str]:
    """Returns the files of the repository, relative to its root, without version control and caches."""
    found = []
    for folder, subfolders, files in os.walk(REPOSITORY):
        subfolders[:] = [name for name in subfolders if name not in CACHES and not name.endswith(".egg-info")]
        found.extend(os.path.relpath(os.path.join(folder, name), REPOSITORY) for name in files)
    return frozenset(name for name in found if not Path(name).name.startswith(".coverage"))


def _orphans(mark: str) -> list[int]:
    """Returns the ids of processes that one of these tests started and that no longer descend from it."""
    own = psutil.Process()
    started = own.create_time()
    descendants = {own.pid, *(child.pid for child in own.children(recursive=True))}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid in descendants or process.create_time() < started:
                continue
            if process.environ().get(SESSION_MARK) == mark:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
