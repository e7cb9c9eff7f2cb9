"""How the text after a flag becomes the value of a ``param`` declaration, for every type of parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import param

from health_ml.cli.describe import NONE_TEXT, choices_of, describe
from health_ml.errors import join_choices
from health_ml.param_types import CustomTypeParam, IntTuple, json_or_literal

TRUE_WORDS = ("on", "t", "true", "y", "yes", "1")
FALSE_WORDS = ("off", "f", "false", "n", "no", "0")

WHOLE_NUMBER = re.compile(r"[+-]?\d+(_\d+)*")
Reader = Callable[[str], Any]


def parse_text(parameter: param.Parameter[Any], text: str, *, keeps_whole_numbers: bool = True) -> Any:
    """Returns the value that a text stands for.

    :param keeps_whole_numbers: Whether a ``param.Number`` reads ``4`` as a whole number or as ``4.0``.
    :raises ValueError: If it stands for none. The message is a sentence without the name of the flag.
    """
    reader = reader_for(parameter, keeps_whole_numbers=keeps_whole_numbers)
    if reader is None:
        raise ValueError(f"a {type(parameter).__name__} parameter cannot be set from the outside.")
    if text == NONE_TEXT and parameter.allow_None and text not in choices_of(parameter):
        return None
    try:
        value = reader(text)
        if value != value and getattr(parameter, "bounds", None):  # NaN, which is in all bounds and in none
            raise _NotThatType(text)
        return value
    except (TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"it takes {describe(parameter)} ({error}).") from error
    except _NotThatType as error:
        raise ValueError(f"it takes {describe(parameter)}.") from error


def is_left_empty(parameter: param.Parameter[Any], text: str) -> bool:
    """True if a text is empty where that cannot be meant: most likely a variable of the shell is not set.

    An empty text is a value only where there is another one by default.
    """
    if is_number(parameter):
        return not text.strip()
    has_nothing = parameter.default is None or (isinstance(parameter.default, str) and not parameter.default)
    return not text and has_nothing and isinstance(parameter, _TEXTS_AND_CHOICES)


def is_number(parameter: param.Parameter[Any]) -> bool:
    """True if the parameter takes a single number."""
    return isinstance(parameter, param.Number) and not isinstance(parameter, (param.Date, param.CalendarDate))


_TEXTS_AND_CHOICES = (param.String, param.Path, param.ClassSelector, CustomTypeParam)


class _NotThatType(ValueError):
    """The text is not of the type that a built-in reader expects; the caller says what is."""


# --- one reader per type ----------------------------------------------------------------------------------------------


def reader_for(parameter: param.Parameter[Any], *, keeps_whole_numbers: bool = True) -> Reader | None:
    """Returns the function that reads the text of a parameter, or None if it cannot be given as text."""
    if isinstance(parameter, CustomTypeParam):
        return _user_reader(parameter.from_string)
    if isinstance(parameter, param.Number) and not isinstance(parameter, _NUMBERS_THAT_ARE_NONE):
        return _number if keeps_whole_numbers else _float
    for parameter_type, make_reader in _READERS:
        if isinstance(parameter, parameter_type):
            return make_reader(parameter)
    return None


_NUMBERS_THAT_ARE_NONE = (param.Integer, param.Date, param.CalendarDate)
"""Subclasses of param.Number with readers of their own."""


def is_boolean_word(text: str) -> bool:
    """True if the text is one of the words for on and off."""
    return text.lower() in TRUE_WORDS + FALSE_WORDS


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise _NotThatType(text)


def _integer(text: str) -> int:
    if not WHOLE_NUMBER.fullmatch(text.strip()):
        raise _NotThatType(text)
    return int(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise _NotThatType(text) from error


def _number(text: str) -> int | float:
    """Returns a whole number if the text has neither point nor exponent, so that ``1`` and ``1.0`` stay different."""
    return _integer(text) if WHOLE_NUMBER.fullmatch(text.strip()) else _float(text)


def _date(text: str) -> Any:
    import datetime

    try:
        return datetime.date.fromisoformat(text.strip())
    except ValueError as error:
        raise _NotThatType(text) from error


def _datetime(text: str) -> Any:
    import datetime

    try:
        return datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _NotThatType(text) from error


def _dictionary(text: str) -> Any:
    if not text.strip():
        return {}
    value = json_or_literal(text)
    if not isinstance(value, dict):
        raise _NotThatType(text)
    return value


def _user_reader(read: Reader) -> Reader:
    """Returns a reader that lets the text of the type's own ValueError through and explains any other error."""

    def reader(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            raise
        except Exception as error:  # whatever the user's type raises is a value that it does not take
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return reader


def _class_reader(parameter: param.ClassSelector[Any]) -> Reader | None:
    if not parameter.is_instance:
        return None
    classes = parameter.class_ if isinstance(parameter.class_, tuple) else (parameter.class_,)
    readers = [reader for reader in map(_reader_of_class, classes) if reader is not None]
    if not readers:
        return None

    def reader(text: str) -> Any:
        if not text and parameter.allow_None:
            return None
        return _first_that_reads(readers, text)

    return reader


def _first_that_reads(readers: Sequence[Reader], text: str) -> Any:
    for reader in readers[:-1]:
        try:
            return reader(text)
        except ValueError:
            continue
    return readers[-1](text)


_BUILT_IN: dict[type, Reader] = {bool: _boolean, int: _integer, float: _float, str: str, dict: _dictionary}


def _reader_of_class(class_: Any) -> Reader | None:
    """Returns the reader of values of a class: its members if it is an Enum, else what ``class_(text)`` gives."""
    if not isinstance(class_, type):
        return None
    if class_ in _BUILT_IN:
        return _BUILT_IN[class_]
    if class_ in (list, tuple):
        return lambda text: class_(split_items(text))
    if issubclass(class_, Enum):
        return lambda text: _enum_member(class_, text)
    if class_ is type(None) or class_ is object:
        return None
    return _non_empty(_user_reader(class_), class_)


def _non_empty(reader: Reader, class_: type) -> Reader:
    def read(text: str) -> Any:
        if issubclass(class_, Path) and not text.strip():
            raise _NotThatType(text)  # Path("") is the current folder, which nobody means by an empty value
        return reader(text)

    return read


def _enum_member(class_: type[Enum], text: str) -> Enum:
    """Returns the member with that value, name, or ``Class.name``; case counts only where members differ in nothing
    else.
    """
    wanted = text.strip().removeprefix(f"{class_.__name__}.")
    for fold in (str, str.casefold):
        matches = [m for m in class_ if fold(wanted) in (fold(str(m.value)), fold(m.name))]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"{text!r} is ambiguous: {join_choices([str(m.value) for m in matches])}.")
    raise _NotThatType(text)


def _selector(parameter: param.Selector[Any]) -> Reader:
    def reader(text: str) -> Any:
        options = parameter.get_range()
        for name, value in options.items():
            if text in (name, str(value)):
                return value
        if not parameter.check_on_set and not options:
            return text
        raise _NotThatType(text)

    return reader


def _list_selector(parameter: param.ListSelector) -> Reader:
    one = _selector(parameter)
    return lambda text: [one(item) for item in split_items(text)]


# --- lists and tuples -------------------------------------------------------------------------------------------------


def split_items(text: str) -> list[str]:
    """Returns the items of ``1,2``, ``[1, 2]``, ``(1, 2)`` or ``['a', 'b']``; empty items are dropped."""
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("[]", "()") and len(inner) > 1:
        inner = inner[1:-1]
    items = re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]+)\s*(?:,|$)""", inner)
    return [item for item in (_unquoted(item.strip()) for item in items) if item]


def _unquoted(item: str) -> str:
    is_quoted = len(item) > 1 and item[0] == item[-1] and item[0] in "'\""
    return item[1:-1] if is_quoted else item


def item_reader(parameter: param.Parameter[Any], *, keeps_whole_numbers: bool = True) -> Reader | None:
    """Returns the reader of one item of a list or tuple parameter, or None if the parameter is neither."""
    if isinstance(parameter, IntTuple):
        return _integer
    if isinstance(parameter, (param.DateRange, param.CalendarDateRange)):
        return _date if isinstance(parameter, param.CalendarDateRange) else _datetime
    if isinstance(parameter, param.NumericTuple):
        return _number
    if isinstance(parameter, param.Tuple):
        return _scalar
    if isinstance(parameter, param.ListSelector):
        return _selector(parameter)
    if isinstance(parameter, param.List):
        return _list_item_reader(parameter)
    return None


def _list_item_reader(parameter: param.List[Any]) -> Reader | None:
    item_type = parameter.item_type
    if item_type is None:
        types = {type(item) for item in parameter.default or [""]}
        item_type = types.pop() if len(types) == 1 else str
    classes = item_type if isinstance(item_type, tuple) else (item_type,)
    readers = [reader for reader in map(_reader_of_class, classes) if reader is not None]
    return (lambda text: _first_that_reads(readers, text)) if readers else None


def _scalar(text: str) -> Any:
    """Returns a number if the text is one, else the text."""
    try:
        return _number(text)
    except ValueError:
        return text


def _list(parameter: param.List[Any]) -> Reader | None:
    read_item = item_reader(parameter)
    if read_item is None:
        return None
    return lambda text: [read_item(item) for item in split_items(text)]


def _tuple(parameter: param.Tuple[Any]) -> Reader | None:
    read_item = item_reader(parameter)
    if read_item is None:
        return None

    def reader(text: str) -> Any:
        values = tuple(read_item(item) for item in split_items(text))
        if parameter.length is not None and len(values) != parameter.length:
            raise _NotThatType(text)
        return values

    return reader


_READERS: tuple[tuple[Any, Callable[[Any], Reader | None]], ...] = (
    (param.Boolean, lambda _: _boolean),
    (param.Integer, lambda _: _integer),
    (param.CalendarDate, lambda _: _date),
    (param.Date, lambda _: _datetime),
    (param.ListSelector, _list_selector),
    (param.List, _list),
    (param.Tuple, _tuple),
    (param.Dict, lambda _: _dictionary),
    (param.ClassSelector, _class_reader),
    (param.Selector, _selector),
    (param.String, lambda _: str),
    (param.Path, lambda _: str),
)
"""Type of parameter and how its reader is made, the more special types first."""
