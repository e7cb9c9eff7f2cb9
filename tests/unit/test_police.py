"""The police catches each kind of leak: a small test file that leaks all of them is run with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.police import REPOSITORY, Scene

LEAKS = """
import logging, os, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest

from tests.helpers import police

police.GRACE_SECONDS = 0.5


def test_clean(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEAN", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    thread = threading.Thread(target=time.sleep, args=(0.05,))
    thread.start()
    subprocess.run([sys.executable, "-c", "pass"], check=True)

def test_variable():
    os.environ["LEAKED"] = "1"

def test_removed_variable():
    del os.environ["GIVEN"]

def test_variable_was_put_back():
    assert os.environ["GIVEN"] == "here"
    assert "LEAKED" not in os.environ

def test_directory(tmp_path):
    os.chdir(tmp_path)

def test_file():
    Path("left.txt").write_text("left")

def test_thread():
    threading.Thread(target=time.sleep, args=(30,), name="left over", daemon=True).start()

def test_process():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])

def test_handler():
    logging.getLogger().addHandler(logging.NullHandler())

def test_path():
    sys.path.append("/somewhere")

def test_signal():
    signal.signal(signal.SIGUSR1, lambda *_: None)

def test_orphan():
    command = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(31)'])"
    subprocess.run([sys.executable, "-c", command], check=True)
"""

EXPECTED = {
    "test_variable": "environment variables changed: LEAKED",
    "test_removed_variable": "environment variables changed: GIVEN",
    "test_directory": "the working directory changed to",
    "test_file": r"new in .*: left\.txt",
    "test_thread": "threads stayed: left over",
    "test_process": r"child processes stayed: .*time\.sleep\(30\)",
    "test_handler": "logging handlers stayed: <NullHandler.*of logger root",
    "test_path": "sys.path changed: /somewhere",
    "test_signal": "signal handlers changed: SIGUSR1",
    "test_orphan": r"The module left something behind: processes without a parent stayed: .*time\.sleep\(31\)",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the output of pytest, with the police, on a file that leaks."""
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "test_leaks.py").write_text(LEAKS)
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.helpers.police", "-p", "no:cacheprovider", "-rA",
         "--rootdir", str(folder), "test_leaks.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GIVEN": "here"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.parametrize(("name", "message"), EXPECTED.items())
def test_leak_is_an_error_of_the_test_that_leaked(report: str, name: str, message: str) -> None:
    section = re.search(rf"_ ERROR at teardown of {name} _+\n(.*?)\n(_____|=====)", report, re.DOTALL)
    assert section, report
    assert re.search(message, section[1]), section[1]


def test_clean_test_passes_and_leaks_are_put_right(report: str) -> None:
    errors = re.findall(r"^ERROR test_leaks.py::(\w+)", report, re.MULTILINE)
    assert sorted(errors) == sorted(EXPECTED)
    assert "12 passed" in report
    assert "failed" not in report.splitlines()[-1]


def test_leaked_processes_were_ended(report: str) -> None:
    # A set: where the variable CI is set, pytest repeats each message, uncut, in its summary.
    process_ids = {int(number) for number in re.findall(r"stayed: (\d+) \(", report)}
    assert len(process_ids) == 2
    assert not any(_is_running(number) for number in process_ids)


def _is_running(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_check_is_cheap() -> None:
    """Below 2 ms of CPU per test: the fastest of five rounds, since other processes share the cores."""
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(20):
            assert Scene().restore_and_report() == []
        rounds.append((time.process_time() - start) / 20)
    assert min(rounds) < 0.002


def test_new_file_in_the_repository_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.helpers import police

    (tmp_path / "src" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(police, "REPOSITORY", tmp_path)
    before = police.repository_files()
    (tmp_path / "src" / "__pycache__" / "cached.pyc").touch()
    (tmp_path / "src" / "left.py").touch()
    assert police.repository_files() - before == {"src/left.py"}
