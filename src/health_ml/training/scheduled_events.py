"""Asks Azure whether it is about to take this virtual machine back, and stops the run in time.

Azure announces that at an address that each virtual machine can reach, at least 30 seconds before. The format is that
of the Scheduled Events of the Instance Metadata Service, api-version 2020-07-01.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from health_ml.environment import RunEnvironment
from health_ml.training.signals import SignalGuard

logger = logging.getLogger(__name__)

ADDRESS = "http://169.254.169.254/metadata"
_EVENTS = "scheduledevents?api-version=2020-07-01"
_NAME = "instance/compute/name?api-version=2021-02-01&format=text"
_ENDING = ("Preempt", "Terminate")
_POLL_SECONDS = 2.0
_TIMEOUT_SECONDS = 5.0
_MOST_FAILURES = 10
"""In a row, before nobody asks any more."""
_ASSET_TAG = Path("/sys/class/dmi/id/chassis_asset_tag")
_AZURE = "7783-7084-3265-9085-8269-3286-77"
"""What the firmware of every virtual machine in Azure has as its asset tag."""


@contextmanager
def scheduled_events(environment: RunEnvironment, guard: SignalGuard) -> Iterator[None]:
    """Sends this process SIGTERM if Azure takes the machine back while the body runs.

    :param guard: What handles the signal. The SIGTERM with which the machine goes down later is no second request.

    A thread asks, so nothing waits for the answer. One process per machine does so, and only in Azure.
    """
    address = events_address(environment)
    if address is None or not environment.is_local_rank_zero:
        yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, is_over, guard), name="himl-scheduled-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()  # without waiting for an answer that may be on its way


def events_address(environment: RunEnvironment, asset_tag: Path = _ASSET_TAG) -> str | None:
    """Returns the address to ask, or None if there is nobody to ask.

    :param asset_tag: The file that tells whether this is a virtual machine in Azure.
    """
    choice = environment.scheduled_events
    if choice.lower() in ("off", "0"):
        return None
    if "://" in choice:
        return choice.rstrip("/")
    if choice.lower() in ("on", "1"):
        return ADDRESS
    try:
        return ADDRESS if asset_tag.read_text().strip() == _AZURE else None
    except OSError:
        return None


def announced_end(document: Any, machine: str) -> str:
    """Returns the kind of event in Azure's answer that ends the machine, or an empty text.

    :param document: The answer.
    :param machine: Name of this machine; events may be for another one of the same scale set. Empty: not known.
    """
    events = document.get("Events") if isinstance(document, dict) else None
    for event in events if isinstance(events, list) else []:
        if not isinstance(event, dict) or event.get("EventType") not in _ENDING:
            continue
        resources = event.get("Resources")
        if not machine or not isinstance(resources, list) or machine in resources:
            return str(event["EventType"])
    return ""


def _watch(address: str, is_over: threading.Event, guard: SignalGuard) -> None:
    import requests  # takes a while to import, which must not hold up the start

    with requests.Session() as session:
        session.trust_env = False  # the address is never behind a proxy
        session.headers["Metadata"] = "true"
        machine: str | None = None
        failures = 0
        while failures < _MOST_FAILURES:
            try:
                machine = _machine_name(session, address) if machine is None else machine
                kind = announced_end(_get(session, f"{address}/{_EVENTS}").json(), machine)
                failures = 0
            except (requests.RequestException, ValueError) as error:
                kind = ""
                failures += 1
                logger.debug("Azure does not say whether it takes the machine back: %s", error)
            if kind:
                _stop(kind, is_over, guard)
                return
            if is_over.wait(_POLL_SECONDS):
                return
        logger.warning("Azure does not say any more whether it takes this machine back: nobody asks again.")


def _stop(kind: str, is_over: threading.Event, guard: SignalGuard) -> None:
    if not is_over.is_set():
        logger.warning(f"Azure takes this machine back (scheduled event {kind}).")
        guard.expect_termination()
        os.kill(os.getpid(), signal.SIGTERM)


def _machine_name(session: Any, address: str) -> str:
    """Returns what Azure calls this machine, or an empty text if it does not say."""
    response = session.get(f"{address}/{_NAME}", timeout=_TIMEOUT_SECONDS, allow_redirects=False)
    return str(response.text).strip() if response.status_code == HTTPStatus.OK else ""


def _get(session: Any, address: str) -> Any:
    response = session.get(address, timeout=_TIMEOUT_SECONDS, allow_redirects=False)
    response.raise_for_status()
    return response
