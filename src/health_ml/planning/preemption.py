"""What ``--simulate_preemption`` asks for: the moment and the signal of an interruption."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from health_ml.errors import ArgumentsError

MOMENTS = {"step": 1, "epoch": 0, "seconds": 0}
"""What a moment is counted in, with the smallest number."""
_LATEST = 10**9
"""No run lasts so long, in whatever unit; timers and formats of numbers end not far behind."""
NOT_INTERRUPTED = "none"
"""Stands for no interruption, in the environment of a process that continues after one."""
SIGNALS = ("TERM", "KILL", "INT", "USR1")
_HINT = (
    "Write step:N (after that optimizer step), epoch:N (in the middle of that epoch, counted from 0) or seconds:S "
    f"(after the start of the training), and after a comma signal:X with X one of {', '.join(SIGNALS)}, if it is not "
    "to be TERM: --simulate_preemption=step:100,signal:KILL."
)


@dataclass(frozen=True)
class SimulatedPreemption:
    """One interruption of a training.

    :param unit: ``step``, ``epoch`` or ``seconds``.
    :param number: How many of them.
    :param signal_name: ``TERM``, ``KILL``, ``INT`` or ``USR1``.
    """

    unit: str = "epoch"
    number: float = 1
    signal_name: str = "TERM"

    @property
    def signal(self) -> signal.Signals:
        """The signal."""
        return signal.Signals[f"SIG{self.signal_name}"]

    @property
    def moment(self) -> str:
        """When it comes, in words."""
        return {
            "step": f"after optimizer step {self.number:g}",
            "epoch": f"in the middle of epoch {self.number:g}",
            "seconds": f"{self.number:g} seconds after the start of the training",
        }[self.unit]


def parse_preemption(text: str) -> SimulatedPreemption:
    """Returns the interruption in a text such as ``step:100``, ``seconds:30,signal:KILL`` or ``signal:KILL``.

    A signal alone comes in the middle of epoch 1, when there is a checkpoint of epoch 0.

    :raises ArgumentsError: If the text cannot be read.
    """
    values: dict[str, str] = {}
    for part in text.split(","):
        name, separator, value = part.strip().partition(":")
        if not separator or name not in (*MOMENTS, "signal"):
            raise _error(text, f"{part.strip()!r} is neither a moment nor a signal")
        if name in values or (name in MOMENTS and not MOMENTS.keys().isdisjoint(values)):
            raise _error(text, "it names more than one moment or signal")
        values[name] = value.strip()
    signal_name = values.pop("signal", "TERM").upper().removeprefix("SIG")
    if signal_name not in SIGNALS:
        raise _error(text, f"{signal_name!r} is no signal to stop a run with")
    for unit, number in values.items():
        return SimulatedPreemption(unit, _number(text, unit, number), signal_name)
    return SimulatedPreemption(signal_name=signal_name)


def _number(text: str, unit: str, value: str) -> float:
    try:
        number = float(value) if unit == "seconds" else int(value)
    except ValueError:
        raise _error(text, f"{value!r} is no number of {unit}{'' if unit == 'seconds' else 's'}") from None
    if not MOMENTS[unit] <= number <= _LATEST:
        name = unit if unit == "seconds" else f"{unit}s"
        raise _error(text, f"{name} go from {MOMENTS[unit]} to {_LATEST}")
    return number


def _error(text: str, problem: str) -> ArgumentsError:
    return ArgumentsError(f"--simulate_preemption={text}: {problem}.", _HINT)
