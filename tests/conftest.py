"""What holds for every test: a clean environment to start from, and the police that looks for leaks."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.helpers.police import leaves_nothing_behind, module_leaves_nothing_behind, session_mark

__all__ = ["leaves_nothing_behind", "module_leaves_nothing_behind", "session_mark"]

# One thread per process: several test processes on few cores only get in each other's way. torch, MKL and OpenBLAS
# read these when they are imported, which is after this.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# No test may talk to a service outside this machine.
os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"})

# The tests decide what a run finds in its environment, not the shell that started them.
_OURS = ("HIML_", "AZUREML_", "OMPI_COMM_WORLD_")
_KEPT = {"HIML_AZUREML_CONTRACT"}
_DISTRIBUTED = {"RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
for variable in list(os.environ):
    if variable in _KEPT:
        continue
    if variable.startswith(_OURS) or variable in _DISTRIBUTED or variable == "MLFLOW_TRACKING_URI":
        del os.environ[variable]


@pytest.fixture(autouse=True, scope="session")
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps the key that signs checkpoints out of the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(folder)
    yield folder
    os.environ.pop("XDG_STATE_HOME", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lets a report have only what can be sent to another process: names of files may be no text."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
