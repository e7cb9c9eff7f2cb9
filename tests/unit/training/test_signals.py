"""What a signal does to a run, in each of its phases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from health_ml.records.record import RunStatus
from health_ml.training.signals import RunInterrupted, SignalGuard


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, RunStatus.PREEMPTED),
        (signal.SIGUSR1, RunStatus.PREEMPTED),
        (signal.SIGHUP, RunStatus.PREEMPTED),
        (signal.SIGINT, RunStatus.CANCELLED),
    ],
)
def test_signal_interrupts_the_main_thread_where_nobody_asks_for_it(number: int, status: RunStatus) -> None:
    guard = SignalGuard()
    with guard.installed(), pytest.raises(RunInterrupted, match=signal.Signals(number).name) as caught:
        os.kill(os.getpid(), number)
    assert caught.value.status is status
    assert guard.received == number


def test_deferred_signal_is_remembered() -> None:
    guard = SignalGuard()
    with guard.installed():
        with guard.deferring():
            os.kill(os.getpid(), signal.SIGTERM)
            assert guard.received == signal.SIGTERM
        with pytest.raises(RunInterrupted, match="SIGTERM"):
            guard.raise_if_received()


def test_an_announced_termination_is_no_second_signal() -> None:
    guard = SignalGuard()
    with guard.installed(), guard.deferring():
        guard.expect_termination()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.received == signal.SIGTERM


def test_sigterm_after_the_notice_of_a_batch_system_belongs_to_it() -> None:
    guard = SignalGuard()
    with guard.installed(), guard.deferring():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert guard.received == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
    assert guard.received == signal.SIGTERM


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_is_no_second_signal(first: int) -> None:
    guard = SignalGuard()
    with guard.installed(), guard.deferring():
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGHUP)  # would end this process at once
        assert guard.received == first


def test_what_nohup_lets_be_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalGuard().installed() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), 0)
        assert guard.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handler_of_the_user_for_sigusr1_stays() -> None:
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with SignalGuard().installed() as guard:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), 0)
        assert (seen, guard.received) == ([signal.SIGUSR1], None)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_without_signal_nothing_happens() -> None:
    guard = SignalGuard()
    with guard.installed():
        guard.raise_if_received()
    assert guard.received is None


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with SignalGuard().installed():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_outside_the_main_thread_the_guard_does_nothing() -> None:
    seen = []

    def body() -> None:
        with SignalGuard().installed() as guard:
            seen.append(guard.received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [None]


def test_interruption_is_not_swallowed_by_except_exception() -> None:
    assert not issubclass(RunInterrupted, Exception)


SECOND_SIGNAL = """
import os, signal, sys, time
from health_ml.training.signals import SignalGuard
guard = SignalGuard(on_forced_exit=lambda interruption: os.write(1, f"{interruption.status.value}\\n".encode()))
with guard.installed(), guard.deferring():
    print("ready", flush=True)
    is_told = 0
    while True:
        time.sleep(0.01)
        if guard.received is not None and not is_told:
            is_told = os.write(1, b"first\\n")
"""

FORKED = """
import os, signal, sys, time
from health_ml.training.signals import SignalGuard
with SignalGuard().installed():
    child = os.fork()
    if child == 0:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
    time.sleep(0.5)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
        time.sleep(0.2)
    alive = os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    print(alive, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM, flush=True)
"""


def _start(program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_exits_at_once(number: int) -> None:
    process = _start(SECOND_SIGNAL)
    assert process.stdout is not None
    process.send_signal(number)
    assert process.stdout.readline() == "first\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert output == ("CANCELLED\n" if number == signal.SIGINT else "PREEMPTED\n")
    assert process.returncode == 128 + number


def test_process_that_loads_data_survives_a_signal_for_the_whole_group() -> None:
    started = time.monotonic()
    process = _start(FORKED)
    output, _ = process.communicate(timeout=20)
    assert output == "True True\n"
    assert time.monotonic() - started < 20
