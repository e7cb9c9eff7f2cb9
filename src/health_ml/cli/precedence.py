"""Compares the values of parameters before and after somebody changed them, to know where each value comes from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import param


def values_of(owner: param.Parameterized, names: Iterable[str]) -> dict[str, Any]:
    """Returns the values of parameters; lists and dictionaries are copied, so that changes in place are noticed."""
    return {name: _frozen(getattr(owner, name)) for name in names}


def is_same(value: Any, other: Any) -> bool:
    """True if two values are equal and of the same type; values that cannot be compared are the same if identical."""
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    try:
        return bool(value == other)
    except Exception:  # arrays and user types may refuse the comparison
        return False


def changed_names(owner: param.Parameterized, before: Mapping[str, Any]) -> list[str]:
    """Returns the names of the parameters that differ from the values given."""
    return [name for name, value in before.items() if not is_same(getattr(owner, name), value)]


def _frozen(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (list, dict, set)) else value
