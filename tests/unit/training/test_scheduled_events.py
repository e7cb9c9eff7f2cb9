"""A machine that Azure takes back, as a server on this machine announces it."""

from __future__ import annotations

import json
import signal
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from health_ml.environment import RunEnvironment
from health_ml.training import scheduled_events as module
from health_ml.training.scheduled_events import ADDRESS, announced_end, events_address, scheduled_events
from health_ml.training.signals import RunInterrupted, SignalGuard
from tests.helpers.http_server import send, serving


def event(kind: str, *resources: str) -> dict[str, Any]:
    return {"Events": [{"EventId": "1", "EventType": kind, "Resources": list(resources)}]}


@pytest.mark.parametrize(
    ("document", "machine", "expected"),
    [
        (event("Preempt", "me"), "me", "Preempt"),
        (event("Terminate", "you", "me"), "me", "Terminate"),
        (event("Preempt", "you"), "me", ""),
        (event("Preempt", "you"), "", "Preempt"),
        (event("Reboot", "me"), "me", ""),
        ({"Events": []}, "me", ""),
        ({"Events": None}, "me", ""),
        ({"Events": ["?"]}, "me", ""),
        ([], "me", ""),
        (None, "me", ""),
    ],
)
def test_announced_end(document: Any, machine: str, expected: str) -> None:
    assert announced_end(document, machine) == expected


@pytest.mark.parametrize(
    ("choice", "tag", "expected"),
    [
        ("", None, None),
        ("", "7783-7084-3265-9085-8269-3286-77", ADDRESS),
        ("", "No Asset Tag", None),
        ("off", "7783-7084-3265-9085-8269-3286-77", None),
        ("on", None, ADDRESS),
        ("http://127.0.0.1:1/metadata/", None, "http://127.0.0.1:1/metadata"),
    ],
)
def test_whom_to_ask(choice: str, tag: str | None, expected: str | None, tmp_path: Path) -> None:
    file = tmp_path / "chassis_asset_tag"
    if tag is not None:
        file.write_text(f"{tag}\n")
    environment = RunEnvironment.from_env({"HIML_SCHEDULED_EVENTS": choice})
    assert events_address(environment, file) == expected


def test_preemption_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.02)
    answers = iter([b"machine_3", json.dumps({"Events": []}).encode(), b"no json"])

    def behave(handler: BaseHTTPRequestHandler, index: int) -> None:
        send(handler, next(answers, json.dumps(event("Preempt", "machine_3")).encode()))

    guard = SignalGuard()
    with (
        serving(behave) as server,
        guard.installed(),
        scheduled_events(RunEnvironment(scheduled_events=server.url), guard),
        pytest.raises(RunInterrupted, match="SIGTERM"),
    ):
        time.sleep(10)
    assert guard.received == signal.SIGTERM
    assert {request["Metadata"] for request in server.requests} == {"true"}
    assert [request["path"].split("?")[0] for request in server.requests[:2]] == [
        "/instance/compute/name",
        "/scheduledevents",
    ]


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    with scheduled_events(RunEnvironment(scheduled_events="http://127.0.0.1:9"), SignalGuard()):
        time.sleep(0.2)


def test_other_processes_of_a_machine_do_not_ask() -> None:
    with (
        serving(lambda handler, index: send(handler, b"{}")) as server,
        scheduled_events(RunEnvironment(local_rank=1, scheduled_events=server.url), SignalGuard()),
    ):
        time.sleep(0.1)
    assert server.requests == []
