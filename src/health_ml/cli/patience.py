"""Waiting for a run that goes on without this process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from health_ml.errors import TerminatedError


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM interrupt the body as Ctrl-C would, so that there is time to say what becomes of the run.

    A second one ends the process at once. Whoever handles the signal already goes on doing so.

    :raises TerminatedError: When it arrives.
    """
    is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise TerminatedError

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except Exception as error:
        if arrived:  # a library has made another error of the interruption
            raise TerminatedError from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
