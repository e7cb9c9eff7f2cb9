"""The locks of trials, and when forking is not safe."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from health_ml.backends import trial_server
from health_ml.backends.trial_lock import is_held, read_owner, take_lock, write_owner
from health_ml.backends.trial_processes import TrialOrder, TrialProcess, TrialServer
from health_ml.backends.trial_server import obstacle_to_forking
from health_ml.records.process_identity import process_identity


def test_a_lock_is_held_as_long_as_somebody_has_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trial.lock"
    assert not is_held(path)
    lock = take_lock(path)
    assert lock is not None
    assert take_lock(path) is None
    assert is_held(path)
    assert read_owner(path) == {}
    write_owner(lock, process_identity())
    assert read_owner(path)["pid"] == os.getpid()
    copy = os.dup(lock)
    os.close(lock)
    assert is_held(path), "a copy is as good as the first"
    os.close(copy)
    assert not is_held(path)
    again = take_lock(path)
    assert again is not None
    assert read_owner(path) == {}, "the former owner is forgotten"
    os.close(again)


def test_a_trial_whose_process_died_has_ended_although_its_worker_has_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "trial.lock"
    lock = take_lock(path)
    assert lock is not None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    identity = process_identity(dead.pid)
    dead.wait()
    write_owner(lock, identity)
    assert not is_held(path)
    assert not TrialProcess(path).is_alive()
    os.close(lock)


@pytest.fixture
def _no_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the threads of servers that earlier tests of this process share."""
    others = set(threading.enumerate()) - {threading.main_thread()}
    everything = threading.enumerate
    monkeypatch.setattr(threading, "enumerate", lambda: [one for one in everything() if one not in others])


@pytest.mark.usefixtures("_no_other_threads")
def test_this_process_can_be_forked() -> None:
    assert obstacle_to_forking() == ""


@pytest.mark.usefixtures("_no_other_threads")
def test_threads_are_an_obstacle() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="worker")
    thread.start()
    try:
        assert obstacle_to_forking() == "the code of the model starts threads when it is imported (worker)"
    finally:
        end.set()
        thread.join()


@pytest.mark.usefixtures("_no_other_threads")
def test_cuda_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert obstacle_to_forking() == "the code of the model starts CUDA when it is imported"


COMPUTE = """
import sys, torch
torch.set_num_threads(2)
if {is_used}:
    torch.ones(1 << 22).add_(1.0).sum()
from health_ml.backends import trial_server
trial_server._PROBE_SECONDS = 3.0
print(trial_server.obstacle_to_forking())
"""


def test_a_pool_of_threads_that_was_in_use_is_tried_out() -> None:
    """Whether it blocks depends on how torch was built: what counts is that a fork that blocks is found."""
    found = [
        subprocess.run(
            [sys.executable, "-c", COMPUTE.format(is_used=is_used)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for is_used in (False, True)
    ]
    assert found[0] == ""
    assert found[1] in ("", "the code of the model computes with several threads when it is imported")


def test_a_probe_that_blocks_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blocking:
        def ones(self, count: int) -> None:
            threading.Event().wait()

    monkeypatch.setattr(trial_server, "_PROBE_SECONDS", 0.2)
    assert not trial_server._can_compute_after_fork(Blocking())


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('this is not torch')")
    server = TrialServer("HelloWorld", folder=tmp_path, environment={"PYTHONPATH": f"{tmp_path}:{_python_path()}"})
    while not server.is_ready(1.0):
        pass
    assert server.obstacle == "the server of the trials ended: RuntimeError: this is not torch"
    lock = take_lock(tmp_path / "trial.lock")
    assert lock is not None
    order = TrialOrder(("--version",), {}, tmp_path, tmp_path / "log")
    assert not server.start(order, lock) or server.obstacle
    os.close(lock)
    server.close()


def test_an_order_that_never_comes_completely_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as nothing:
        socket.send_fds(ours, [(100).to_bytes(trial_server.LENGTH_BYTES, "big")], [nothing.fileno()])
        ours.sendall(b"{}")
        ours.shutdown(socket.SHUT_WR)
        assert trial_server._receive(theirs) is None


def _python_path() -> str:
    return os.environ.get("PYTHONPATH", "")
