"""Durations as people write them."""

from __future__ import annotations

import math
import re

from health_ml.errors import PlanError

SECONDS_PER_UNIT = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PART = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", re.IGNORECASE)
_HINT = "Write a number and s, m, h or d, like 45m, 3.5h, 2d or 1h30m."


def parse_duration(text: str) -> float:
    """Returns the seconds in a text such as ``3.5h``, ``2d`` or ``1h30m``; units go from the largest to the smallest.

    :raises PlanError: If the text is no duration or stands for no time at all.
    """
    seconds = 0.0
    position = 0
    units = list(SECONDS_PER_UNIT)
    stripped = text.strip()
    while position < len(stripped):
        part = _PART.match(stripped, position)
        if part is None:
            raise PlanError(f"The duration {text!r} cannot be read from {stripped[position:]!r} on.", _HINT)
        number, unit = part.group(1), part.group(2).lower()
        if unit not in units:
            problem = "comes too late or twice" if unit in SECONDS_PER_UNIT else "is no unit of time"
            shown = f"the unit {unit!r} {problem}" if unit else f"{number} has no unit"
            raise PlanError(f"The duration {text!r} cannot be read: {shown}.", _HINT)
        seconds += float(number) * SECONDS_PER_UNIT[unit]
        units = units[units.index(unit) + 1 :]
        position = part.end()
    if not seconds or not math.isfinite(seconds):
        raise PlanError(f"The duration {text!r} is no time at all." if stripped else "The duration is empty.", _HINT)
    return seconds
