"""Submissions to AzureML against the unmodified SDK, both to the stand-in of the tests with a real Azurite.

Each figure is a whole submission: from looking at the files to the job that the service has accepted.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from benchmarks.snapshot import GITIGNORE
from benchmarks.stand_in import StandIn, running_stand_in
from health_ml.azure.account import AzureMLAccount
from health_ml.azure.client import WorkspaceName
from health_ml.backends.azureml import AzureMLBackend
from health_ml.environment import environment_variables, paused_garbage_collection, working_directory
from health_ml.planning.plan import JobPlan, PlannedLimits, PlannedSoftware
from health_ml.planning.snapshot import hash_cache_folder, take_snapshot

FILES = 10_000
LINES_PER_FILE = 250
LARGE_BYTES = 500_000_000
STARTS = 3
REPETITIONS = 7
CONDA = "dependencies:\n- python=3.11\n- pip:\n  - torch==2.13.0\n"


def write_files(folder: Path, count: int) -> None:
    """Writes many small files of source code, and an ignore file as every project has one."""
    folder.mkdir()
    (folder / ".gitignore").write_text(GITIGNORE)
    for number in range(count):
        part = folder / f"package_{number % 100:03}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"module_{number}.py").write_text(f"value_{number} = {number}\n" * LINES_PER_FILE)


class Ours:
    """Submits a folder as the runner does; the SDK is loaded and the token is there, as for the other one."""

    def __init__(self, workspace: WorkspaceName, folder: Path) -> None:
        self.account = AzureMLAccount(workspace, environ=os.environ)
        self.folder = folder

    def submit(self) -> None:
        backend = AzureMLBackend(self.account, "gpu")
        warm_up = threading.Thread(target=backend.warm_up)
        warm_up.start()
        with paused_garbage_collection():
            snapshot = take_snapshot(self.folder, cache_folder=hash_cache_folder(os.environ))
            plan = JobPlan(
                "HelloWorld", ("--model=HelloWorld",), snapshot.content_hash, experiment="Benchmark",
                limits=PlannedLimits(shared_memory="1g"), software=PlannedSoftware(conda_file=CONDA),
            )  # fmt: skip
            backend.keep_code(snapshot, self.folder)
            backend.submit(backend.render(plan))
        warm_up.join()


class Theirs:
    """Submits a folder as users of the SDK do."""

    def __init__(self, workspace: WorkspaceName, folder: Path) -> None:
        from azure.ai.ml import MLClient
        from azure.identity import EnvironmentCredential

        self.client = MLClient(
            EnvironmentCredential(), workspace.subscription_id, workspace.resource_group, workspace.name
        )
        self.folder = folder

    def submit(self) -> None:
        from azure.ai.ml import command
        from azure.ai.ml.entities import Environment

        conda = self.folder.parent / "environment.yml"
        conda.write_text(CONDA)
        environment: Any = Environment(image="ubuntu", conda_file=str(conda))
        job = command(code=str(self.folder), command="python x.py", environment=environment, compute="gpu")
        with redirect_stderr(io.StringIO()):  # its progress bar
            self.client.jobs.create_or_update(job)


def seconds(action: Callable[[], object]) -> float:
    """Returns how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(workspace: WorkspaceName, base: Path, *, count: int, large_bytes: int) -> list[Row]:
    """Returns the rows about code: many small files, and one large one."""
    small, large = base / "small", base / "large"
    write_files(small, count)
    large.mkdir()
    changed = sorted(small.rglob("*.py"))[-1]  # of the many that travel in archives

    def change(text: str) -> None:
        changed.write_text(f"# {text}\n")

    def submit_new(kind: Ours | Theirs) -> float:
        (large / "weights.bin").write_bytes(os.urandom(large_bytes))
        os.sync()  # so that nothing of it is left to be done
        return seconds(kind.submit)

    figures = {}
    for name, kind in (("ours", Ours), ("theirs", Theirs)):
        many, one = kind(workspace, small), kind(workspace, large)
        first, unchanged = seconds(many.submit), min(seconds(many.submit) for _ in range(REPETITIONS))
        change(name)
        figures[name] = (first, unchanged, seconds(many.submit), min(submit_new(one) for _ in range(STARTS)))
    targets = ("ratio <= 0.2", "ratio <= 0.1", "ratio <= 0.02", "ratio <= 0.7")
    megabytes = large_bytes // 1_000_000
    names = (f"{count} files", f"{count} files, unchanged", f"{count} files, one changed", f"{megabytes} MB")
    rows = zip(names, figures["ours"], figures["theirs"], targets, strict=True)
    return [Row(f"submit {name}", ours, sdk, ours / sdk, target) for name, ours, sdk, target in rows]


def hello_world(service: StandIn, base: Path, *, starts: int = STARTS) -> list[Row]:
    """Returns the rows about HelloWorld with unchanged code: its requests, and what it takes beyond the model."""
    project = base / "project"
    project.mkdir()
    (project / "config.json").write_text(json.dumps(service.config))
    (project / "environment.yml").write_text(CONDA)
    submit = [sys.executable, "-m", "health_ml.runner", "--model=HelloWorld", "--cluster=gpu"]
    load = [sys.executable, "-c", "import health_ml.configs.hello_world"]

    def run(command: list[str]) -> float:
        return seconds(lambda: subprocess.run(command, cwd=project, capture_output=True, check=True, timeout=300))

    run(submit)
    before = service.requests
    run(submit)
    requests = service.requests - before
    submitting, loading = (min(run(command) for _ in range(starts)) for command in (submit, load))
    return [
        Row("submit HelloWorld, requests", requests, None, None, "value <= 4", ""),
        Row("submit HelloWorld beyond its import", submitting - loading, None, None, "value <= 1.0"),
    ]


def main(count: int = FILES, large_bytes: int = LARGE_BYTES, starts: int = STARTS) -> list[Row]:
    """Returns what submissions take."""
    with running_stand_in() as service, tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        variables = {**service.environment, "XDG_CACHE_HOME": str(base / "cache")}
        with environment_variables(variables), working_directory(base):  # no git repository, for both
            return [
                *compare(service.workspace, base, count=count, large_bytes=large_bytes),
                *hello_world(service, base, starts=starts),
            ]
