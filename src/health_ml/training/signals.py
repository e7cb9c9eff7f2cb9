"""Ends a run in an orderly way when it is asked to stop: SIGTERM and SIGUSR1 (preemption), SIGINT (Ctrl-C) and SIGHUP.

The first signal lets the current batch finish, so that a checkpoint can be written at its end; outside the training
loop, where there is nothing to save, it ends the run right where it is. A second signal exits at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from health_ml.errors import EXIT_SIGNAL_BASE
from health_ml.records.record import RunStatus

logger = logging.getLogger(__name__)

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""SIGUSR1 is what batch systems send some time before they take the machine back; SIGTERM follows. SIGHUP comes when
the terminal is closed."""
_LEFT_TO_OTHERS = (signal.SIGUSR1, signal.SIGHUP)
"""Signals that stay as they are where somebody has decided what they do: nohup lets SIGHUP be ignored."""


class RunInterrupted(BaseException):
    """Somebody asked the run to stop. Not an Exception, so that no ``except Exception`` on the way swallows it.

    :param signal_number: The signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"The run was asked to stop by {signal.Signals(signal_number).name}.")
        self.signal_number = signal_number

    @property
    def status(self) -> RunStatus:
        """How the run ends: CANCELLED if a user pressed Ctrl-C, PREEMPTED if a scheduler took the machine back."""
        return RunStatus.CANCELLED if self.signal_number == signal.SIGINT else RunStatus.PREEMPTED


class SignalGuard:
    """Remembers a signal until somebody asks, or interrupts the main thread if nobody will.

    :param on_forced_exit: Called before the process exits at once, with the second signal.
    """

    def __init__(self, on_forced_exit: Callable[[RunInterrupted], None] = lambda interruption: None) -> None:
        self._on_forced_exit = on_forced_exit
        self._process = os.getpid()
        self._is_deferring = False
        self._received: int | None = None
        self._ignored_terminations = 0
        self._expected_terminations = 0

    @property
    def received(self) -> int | None:
        """The first signal that came, or None."""
        return self._received

    def raise_if_received(self) -> None:
        """Ends the run if a signal came.

        :raises RunInterrupted: If so.
        """
        if self._received is not None:
            raise RunInterrupted(self._received)

    @contextmanager
    def installed(self) -> Iterator[SignalGuard]:
        """Handles the signals inside the body. Does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        mine = [number for number in HANDLED_SIGNALS if not is_left_to_others(number)]
        before = {number: signal.signal(number, self._handle) for number in mine}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Inside the body, a signal is only remembered: the body asks for it where it can stop."""
        self.start_deferring()
        try:
            yield
        finally:
            self.stop_deferring()

    def expect_termination(self) -> None:
        """Announces one SIGTERM more, which belongs to one that this process sends itself."""
        self._expected_terminations += 1

    def start_deferring(self) -> None:
        """From here on, a signal is only remembered."""
        self._is_deferring = True

    def stop_deferring(self) -> None:
        """From here on, a signal interrupts the main thread."""
        self._is_deferring = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_data_loader(number)
            return
        if self._received is not None and number == signal.SIGTERM and self._expected_terminations:
            self._expected_terminations -= 1
            return
        if self._received is not None and number == signal.SIGHUP:
            return  # a shell and the system both tell of a closed terminal, and some systems do so beside SIGTERM
        if self._received is not None:
            if (self._received, number) != (signal.SIGUSR1, signal.SIGTERM):  # which belong together
                self._exit_at_once(number)
            self._received = number
            return
        self._received = number
        logger.warning(
            f"Received {signal.Signals(number).name}: stopping as soon as possible. Send it again to exit at once."
        )
        if not self._is_deferring:
            raise RunInterrupted(number)

    def _handle_in_data_loader(self, number: int) -> None:
        """Handles a signal in a process that loads data, which inherits the handler.

        A signal for the whole process group has to leave it alive, because the batch that is trained on may wait
        for it. Its parent ends it by another way; where that fails, by a second SIGTERM.
        """
        if number != signal.SIGTERM:
            return
        self._ignored_terminations += 1
        if self._ignored_terminations > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _exit_at_once(self, number: int) -> None:
        try:
            self._on_forced_exit(RunInterrupted(number))
        finally:
            os._exit(EXIT_SIGNAL_BASE + number)


def is_left_to_others(number: signal.Signals) -> bool:
    """True for a signal that the user's code handles, for example to print where the program is, or lets be ignored."""
    return number in _LEFT_TO_OTHERS and signal.getsignal(number) != signal.SIG_DFL
