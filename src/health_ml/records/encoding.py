"""How values become JSON in the record, so that any value can be stored and no line can become unreadable."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any

from health_ml.planning.secrets import is_secret_name, mask_arguments, mask_value

MAX_DEPTH = 12
"""Containers nested more deeply are stored as text, which also ends values that contain themselves."""

MAX_REPR_LENGTH = 10_000

_COMMAND_LINES = frozenset({"argv", "command_line"})
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_number(value: float) -> float | int | str:
    """Returns the number as JSON can hold it: the numbers that it lacks become ``"nan"``, ``"inf"`` and ``"-inf"``."""
    if isinstance(value, int) or math.isfinite(value):
        return value
    return str(float(value))


def decode_number(value: Any) -> float | None:
    """Returns the number that :func:`encode_number` wrote, or None if it is not one."""
    if isinstance(value, (int, float)):
        return float(value)
    return _NON_FINITE.get(value) if isinstance(value, str) else None


def encode_value(value: Any, *, name: str = "", is_masked: bool = True, depth: int = 0) -> Any:
    """Returns any value as something that JSON can hold, with secrets masked.

    Paths become text, enums their value, sets sorted lists, numbers of numpy and torch plain numbers. What is not
    known becomes its ``repr``.

    :param name: Name of the parameter: it decides whether the value is a secret.
    :param is_masked: False keeps secrets (for values that are public whatever their name looks like).
    """
    if value is None or isinstance(value, bool):
        return value
    if depth < MAX_DEPTH and isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _encode_container(value, name=name, is_masked=is_masked, depth=depth + 1)
    plain = _encode_single(value)
    return mask_value(name, plain) if is_masked else plain


def _encode_container(value: Any, *, name: str, is_masked: bool, depth: int) -> Any:
    # What is in a secret is secret.
    inherited = name if is_masked and is_secret_name(name) else ""
    if isinstance(value, Mapping):
        return {
            str(_encode_single(key)): encode_value(item, name=inherited or str(key), is_masked=is_masked, depth=depth)
            for key, item in value.items()
        }
    if is_masked and name in _COMMAND_LINES:
        return mask_arguments([str(argument) for argument in value])
    items = [encode_value(item, name=inherited, is_masked=is_masked, depth=depth) for item in value]
    return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items


def _encode_single(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return encode_number(float(value))
    if isinstance(value, (str, PurePath)):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    return _scalar_or_text(value)


def _scalar_or_text(value: Any) -> Any:
    """Returns the plain number in a zero-dimensional array or tensor, and the shortened ``repr`` of anything else."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        number = value.item()
        if isinstance(number, (bool, int, float)):
            return encode_number(number)
    try:
        text = repr(value)
    except Exception as error:  # the user's own __repr__ may do anything, and must not stop the training
        text = f"<{type(value).__qualname__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= MAX_REPR_LENGTH else f"{text[:MAX_REPR_LENGTH]}… ({len(text)} characters)"


encode_line = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""Returns the value as one line of JSON; raises ValueError for a number that JSON lacks. Faster than ``json.dumps``."""


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Returns the object on a line, or None if the line is not a complete one (a crash or a full disk cut it)."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
