"""Loads what every trial needs once, and forks a process for each: ``python -m health_ml.backends.trial_server``.

Importing torch, Lightning and the model takes longer than a small training does. The server is a fresh process in
which nothing but imports has happened, so a process that is forked from it is what a new one would be after the same
imports. Where that is not so, because an import has started CUDA or threads, it says why, and forks nothing.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from health_ml.backends.trial_lock import write_owner
from health_ml.environment import environment_variables, working_directory
from health_ml.errors import EXIT_FAILED
from health_ml.records.process_identity import process_identity

MODULES = (
    "health_ml.runner",
    "health_ml.backends.in_process",
    "health_ml.cli.parse",
    "health_ml.cli.model_search",
    "health_ml.training.training_runner",
    "health_ml.training.eval_runner",
)
"""What every trial imports, by name: the runner is above this module."""

LENGTH_BYTES = 8
_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGCHLD: signal.SIG_DFL,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,  # a shell lets what it runs in the background ignore it
}
_PROBE_SECONDS = 10.0
_PROBE_ELEMENTS = 1 << 20


def main(connection: socket.socket, model: str) -> None:
    """Loads everything, and forks a process for each order until the scheduler has ended.

    :param connection: Where orders come from, and where the server says that it is ready.
    :param model: The model of the trials, as ``--model`` names it.
    """
    _preload(model)
    answer = {"obstacle": obstacle_to_forking()}
    with suppress(BrokenPipeError):
        connection.sendall(json.dumps(answer).encode() + b"\n")
    gc.collect()
    gc.freeze()  # the collector would otherwise copy every page that the processes share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the trials: their locks tell when they have ended
    while (received := _receive(connection)) is not None:
        order, lock = received
        if os.fork() == 0:
            connection.close()
            _run_trial(order, lock)
        os.close(lock)


def _preload(model: str) -> None:
    handler = logging.NullHandler()
    logging.root.addHandler(handler)  # Lightning brings its own handler where there is none, and keeps it
    for name in MODULES:
        importlib.import_module(name)
    with suppress(Exception):  # the trial meets the same error, and says it where the user looks
        importlib.import_module("health_ml.cli.model_search").find_container(model, folder=Path.cwd())
    logging.root.removeHandler(handler)


def obstacle_to_forking() -> str:
    """Returns why a process that is forked from this one would not be as good as a new one, or an empty text."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the code of the model starts CUDA when it is imported"
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threads:
        return f"the code of the model starts threads when it is imported ({', '.join(threads)})"
    if torch is not None and torch.get_num_threads() > 1 and not _can_compute_after_fork(torch):
        return "the code of the model computes with several threads when it is imported"
    return ""


def _can_compute_after_fork(torch: Any) -> bool:
    """Tries it, because a pool of threads that was in use before the fork blocks its first use after it for ever."""
    probe = os.fork()
    if probe == 0:
        torch.ones(_PROBE_ELEMENTS).add_(1.0)
        os._exit(0)
    deadline = time.monotonic() + _PROBE_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(probe, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.005)
    os.kill(probe, signal.SIGKILL)
    os.waitpid(probe, 0)
    return False


def _receive(connection: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Returns the next order and the lock of its trial, or None if the scheduler has ended."""
    try:
        header, descriptors, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 1)
        if not header or not descriptors:
            return None
        length = int.from_bytes(header, "big")
        data = b""
        while len(data) < length:
            chunk = connection.recv(length - len(data))
            if not chunk:
                return None
            data += chunk
    except ConnectionError:
        return None
    order: dict[str, Any] = json.loads(data)
    return order, descriptors[0]


# --- in the process of a trial ---------------------------------------------------------------------------------------


def _run_trial(order: dict[str, Any], lock: int) -> NoReturn:
    """Runs a trial as a new process would, and ends the process."""
    code = EXIT_FAILED
    try:
        os.setsid()
        for number, handler in _HANDLERS.items():
            signal.signal(number, handler)
        write_owner(lock, process_identity())
        _redirect_output(Path(order["log"]))
        _forget_random_numbers()
        sys.argv[:] = ["himl-runner", *order["argv"]]
        run = importlib.import_module("health_ml.runner").main
        with environment_variables(order["environment"]), working_directory(Path(order["folder"])):
            code = run(order["argv"])
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """Ends the process as Python does at its end, but leaves the memory to the system: that takes longer than a run."""
    try:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _redirect_output(log: Path) -> None:
    with log.open("ab") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _forget_random_numbers() -> None:
    """Gives numpy a state of its own, as a new process has; Python does so by itself, and torch always starts alike."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
    os._exit(0)  # nothing is left to do, and taking everything down would take longer than a trial
