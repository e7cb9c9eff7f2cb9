"""What a ``param`` declaration takes, in the words of messages and of the help."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import param

from health_ml.errors import join_choices
from health_ml.param_types import FractionTuple, IntTuple

NONE_TEXT = "None"
"""How a value that is not there is written."""


def is_boolean(parameter: param.Parameter[Any]) -> bool:
    """True if the parameter is a switch, whose value may be left out."""
    return isinstance(parameter, param.Boolean)


def choices_of(parameter: param.Parameter[Any]) -> list[str]:
    """Returns the texts that a parameter takes if they can be listed, else an empty list."""
    if is_boolean(parameter):
        return ["true", "false"]
    if isinstance(parameter, param.ClassSelector):
        classes = parameter.class_ if isinstance(parameter.class_, tuple) else (parameter.class_,)
        enums = [class_ for class_ in classes if isinstance(class_, type) and issubclass(class_, Enum)]
        return [str(member.value) for class_ in enums for member in class_]
    if isinstance(parameter, param.Selector):
        return list(parameter.get_range())
    if isinstance(parameter, param.List) and isinstance(parameter.item_type, type):
        return [str(member.value) for member in parameter.item_type] if issubclass(parameter.item_type, Enum) else []
    return []


def describe(parameter: param.Parameter[Any]) -> str:
    """Returns what a parameter takes, as an English phrase with its range or choices."""
    none = f", or {NONE_TEXT}" if parameter.allow_None else ""
    return _describe_value(parameter) + none


def _describe_value(parameter: param.Parameter[Any]) -> str:
    choices = choices_of(parameter)
    if choices and isinstance(parameter, (param.ListSelector, param.List)):
        return f"a comma-separated list of {join_choices(choices)}"
    if choices:
        return f"one of {join_choices(choices)}" if len(choices) > 2 else join_choices(choices)
    if isinstance(parameter, param.CalendarDate):
        return "a date, like 2030-12-31"
    if isinstance(parameter, param.Date):
        return "a date or time, like 2030-12-31T23:59"
    if isinstance(parameter, param.Number):
        kind = "a whole number" if isinstance(parameter, param.Integer) else "a number"
        bounds = bounds_text(parameter)
        return f"{kind}, {bounds}" if bounds else kind
    if isinstance(parameter, param.Tuple):
        return _describe_tuple(parameter)
    if isinstance(parameter, param.List):
        return f"a comma-separated list of {_plural_of(parameter.item_type)}"
    return _NAMES.get(type(parameter), "") or _describe_class(parameter)


def bounds_text(parameter: param.Parameter[Any]) -> str:
    """Returns the range of a number, like ``at least 0 and at most 1``, or an empty string if it has none."""
    bounds = getattr(parameter, "bounds", None)
    if not isinstance(parameter, param.Number) or bounds is None:
        return ""
    includes_low, includes_high = parameter.inclusive_bounds
    parts = []
    if bounds[0] is not None:
        parts.append(f"{'at least' if includes_low else 'above'} {bounds[0]}")
    if bounds[1] is not None:
        parts.append(f"{'at most' if includes_high else 'below'} {bounds[1]}")
    return " and ".join(parts)


def _describe_tuple(parameter: param.Tuple[Any]) -> str:
    kind = "values"
    if isinstance(parameter, IntTuple):
        kind = "whole numbers"
    elif isinstance(parameter, param.NumericTuple):
        kind = "numbers"
    if isinstance(parameter, FractionTuple):
        kind = "numbers of at least 0 and below 1"
    return f"{parameter.length} {kind}, separated by commas" if parameter.length else f"{kind}, separated by commas"


def _plural_of(item_type: Any) -> str:
    names = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths", bool: "true and false"}
    if isinstance(item_type, type):
        return names.get(item_type, f"{item_type.__name__} values")
    return "values"


_NAMES: dict[type, str] = {
    param.String: "a text",
    param.Dict: "a dictionary, like {'a': 1}",
    param.Path: "a path",
    param.Filename: "the path of a file",
    param.Foldername: "the path of a folder",
}


def _describe_class(parameter: param.Parameter[Any]) -> str:
    class_ = getattr(parameter, "class_", None)
    if isinstance(class_, tuple):
        return join_choices([_class_phrase(member) for member in class_])
    return _class_phrase(class_ or type(parameter))


def _class_phrase(class_: type) -> str:
    if issubclass(class_, Path):
        return "a path"
    name = class_.__name__
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def metavar(parameter: param.Parameter[Any]) -> str:
    """Returns the placeholder for the value of a flag in the help."""
    choices = choices_of(parameter)
    if is_boolean(parameter):
        return "BOOL"
    if choices and not isinstance(parameter, (param.ListSelector, param.List)):
        return "|".join(choices)
    for parameter_type, name in _METAVARS:
        if isinstance(parameter, parameter_type):
            return name
    class_ = getattr(parameter, "class_", None)
    if isinstance(class_, type):
        return "PATH" if issubclass(class_, Path) else getattr(class_, "METAVAR", class_.__name__.upper())
    return "VALUE"


_METAVARS: tuple[tuple[type, str], ...] = (
    (param.Integer, "INT"),
    (param.Date, "DATE"),
    (param.CalendarDate, "DATE"),
    (param.Number, "NUMBER"),
    (param.String, "TEXT"),
    (param.Dict, "DICT"),
    (param.ListSelector, "LIST"),
    (param.List, "LIST"),
    (param.Tuple, "TUPLE"),
    (param.Path, "PATH"),
)
