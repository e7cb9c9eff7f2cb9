"""What --simulate_preemption can be told."""

from __future__ import annotations

import signal

import pytest

from health_ml.errors import ArgumentsError
from health_ml.planning.preemption import SimulatedPreemption, parse_preemption


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step:100", SimulatedPreemption("step", 100)),
        ("epoch:0", SimulatedPreemption("epoch", 0)),
        ("seconds:1.5", SimulatedPreemption("seconds", 1.5)),
        ("signal:KILL", SimulatedPreemption("epoch", 1, "KILL")),
        ("signal:SIGUSR1", SimulatedPreemption("epoch", 1, "USR1")),
        ("step:5,signal:kill", SimulatedPreemption("step", 5, "KILL")),
        (" signal:INT , seconds:3 ", SimulatedPreemption("seconds", 3, "INT")),
    ],
)
def test_parse(text: str, expected: SimulatedPreemption) -> None:
    assert parse_preemption(text) == expected


def test_words() -> None:
    preemption = parse_preemption("step:5,signal:KILL")
    assert (preemption.signal, preemption.moment) == (signal.SIGKILL, "after optimizer step 5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is neither a moment nor a signal"),
        ("5", "'5' is neither a moment nor a signal"),
        ("batch:5", "'batch:5' is neither a moment nor a signal"),
        ("step:0", "steps go from 1 to 1000000000"),
        ("step:1.5", "'1.5' is no number of steps"),
        ("step:", "'' is no number of steps"),
        ("epoch:-1", "epochs go from 0 to"),
        ("seconds:nan", "seconds go from 0 to"),
        ("seconds:inf", "seconds go from 0 to"),
        ("seconds:1e99", "seconds go from 0 to 1000000000"),
        ("step:" + "9" * 400, "steps go from 1 to"),
        ("step:1,epoch:2", "more than one moment or signal"),
        ("signal:KILL,signal:TERM", "more than one moment or signal"),
        ("signal:STOP", "'STOP' is no signal to stop a run with"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ArgumentsError, match=message) as caught:
        parse_preemption(text)
    assert f"--simulate_preemption={text}" in str(caught.value)
    assert "Write step:N" in str(caught.value)
