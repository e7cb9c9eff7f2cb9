"""Ends a process when the one that has started it is gone: it would wait for that one for ever."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from health_ml.environment import RunEnvironment
from health_ml.errors import EXIT_FAILED

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0
"""How long the main thread may take to notice it by itself and to say more about it."""


@contextmanager
def ending_with_parent(environment: RunEnvironment) -> Iterator[None]:
    """Ends this process while the body runs, if its parent ends. Does nothing if the environment names no parent."""
    if environment.parent is None:
        yield
        return
    is_over = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(environment.parent, is_over), name="himl-parent-observer", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        watch.join()


def _watch(parent: int, is_over: threading.Event) -> None:
    while not is_over.wait(_POLL_SECONDS):
        if os.getppid() != parent:
            logger.error(f"The process {parent} that has started this one was killed: this one ends too.")
            if not is_over.wait(_GRACE_SECONDS):
                os._exit(EXIT_FAILED)
            return
