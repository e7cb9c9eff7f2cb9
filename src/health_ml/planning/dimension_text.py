"""Reads the dimensions of a search space: from text, from YAML values, and from objects of the AzureML SDK.

Text: ``1e-4,1e-3`` or ``choice(a,b)`` (the words are handed to the flag as they are), ``0..4`` (whole numbers, both
ends included), ``0..10..5`` (in steps), ``int(1,8)``, ``uniform(0,1)``, ``loguniform(1e-5,1e-1)`` and the other
distributions of :mod:`health_ml.planning.dimensions`.

Objects of the SDK are recognised by their attributes, so that the SDK need not be loaded to understand them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from health_ml.errors import did_you_mean, join_choices
from health_ml.planning.dimensions import (
    DIMENSIONS,
    Choice,
    Dimension,
    IntRange,
    LogUniform,
    ParameterValue,
    QLogUniform,
)

_CALL = re.compile(r"([A-Za-z_]\w*)\((.*)\)", re.DOTALL)
_RANGE = re.compile(r"(.*?)\.\.(.*)", re.DOTALL)
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
_OPENING = {"(": ")", "[": "]", "{": "}"}
_RANDINT = "randint"
_SDK_FIELDS = {"min_value": "low", "max_value": "high", "mu": "mu", "sigma": "sigma", "q": "q", "values": "values"}
MAX_GRID_VALUES = 100_000


class DimensionError(ValueError):
    """What is wrong with the text of one dimension, as the part of a sentence behind the name of the parameter."""


def split_outside_brackets(text: str, separators: str) -> list[str]:
    """Returns the parts of a text between separators that are in no brackets and no quotes, without empty parts.

    :raises DimensionError: If a bracket or a quote is not closed.
    """
    parts, current, expected, quote = [], "", [], ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _OPENING:
            expected.append(_OPENING[char])
        elif expected and char == expected[-1]:
            expected.pop()
        elif char in separators and not expected:
            parts.append(current)
            current = ""
            continue
        current += char
    if quote or expected:
        raise DimensionError(f"lacks a closing {quote or expected[-1]} in {text.strip()!r}")
    return [part.strip() for part in (*parts, current) if part.strip()]


def dimension_from_text(text: str) -> Dimension:
    """Returns the dimension that a text describes, for example ``loguniform(1e-5,1e-1)``.

    :raises DimensionError: If it describes none.
    """
    text = text.strip()
    call = _CALL.fullmatch(text)
    if call is not None and len(split_outside_brackets(text, ",")) == 1:
        return _from_call(call.group(1), split_outside_brackets(call.group(2), ","))
    found = _RANGE.fullmatch(text)
    if found is not None and "," not in text and "/" not in text:
        return _from_range(text, found.group(1), found.group(2).split(".."))
    return _checked(Choice(tuple(_unquoted(word) for word in split_outside_brackets(text, ","))))


def dimension_from_value(value: Any) -> Dimension:
    """Returns the dimension that a value in YAML or a container's code describes.

    That may be a text as in :func:`dimension_from_text`, a list of values, a mapping such as ``{choice: [1, 2]}``,
    ``{uniform: [0, 1]}`` or ``{type: uniform, min_value: 0, max_value: 1}``, a distribution of
    ``azure.ai.ml.sweep``, or a :class:`~health_ml.planning.dimensions.Dimension`.

    :raises DimensionError: If it describes none.
    """
    if isinstance(value, Dimension):
        return _checked(value)
    if isinstance(value, str):
        return dimension_from_text(value)
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, Sequence):
        return _choice(value)
    if isinstance(getattr(value, "type", None), str):
        named = {name: getattr(value, name) for name in (*_SDK_FIELDS, "upper") if hasattr(value, name)}
        return _from_sdk(value.type, named)
    if isinstance(value, (int, float, bool)) or value is None:
        raise DimensionError(f"has only the value {value!r}; write [{value}] if that is meant")
    raise DimensionError(f"is {value!r}, which is no distribution; {_choices()}")


def _from_mapping(value: Mapping[Any, Any]) -> Dimension:
    if "type" in value:
        return _from_sdk(str(value["type"]), {str(name): item for name, item in value.items() if name != "type"})
    if len(value) != 1:
        raise DimensionError(f"has {len(value)} keys; give one distribution, like {{uniform: [0, 1]}}")
    ((kind, arguments),) = value.items()
    if not isinstance(arguments, Sequence) or isinstance(arguments, str):
        arguments = [arguments]
    if kind == Choice.kind:
        return _choice(arguments)
    return _from_call(str(kind), [str(argument) for argument in arguments])


def _from_call(name: str, arguments: list[str]) -> Dimension:
    kind = name.lower()
    if kind == _RANDINT:
        (upper,) = _whole_numbers(_RANDINT, "randint(number of values)", arguments, count=1)
        return _checked(IntRange(0, upper - 1))
    if kind not in DIMENSIONS:
        raise DimensionError(f"is {name}(…), which is no distribution. {did_you_mean(kind, DIMENSIONS)} {_choices()}")
    cls = DIMENSIONS[kind]
    if cls is Choice:
        return _checked(Choice(tuple(_unquoted(argument) for argument in arguments)))
    count = len(fields(cls))
    if cls is IntRange:
        return _checked(IntRange(*_whole_numbers(kind, cls.form, arguments, count=count)))
    if len(arguments) != count or not all(_NUMBER.fullmatch(argument) for argument in arguments):
        raise DimensionError(f"is {name}({', '.join(arguments)}); write {cls.form} with numbers")
    return _checked(cls(*(float(argument) for argument in arguments)))


def _from_range(text: str, first: str, rest: list[str]) -> Dimension:
    first, rest = first.strip(), [number.strip() for number in rest]
    if len(rest) > 2 or not _WHOLE_NUMBER.fullmatch(first):
        raise DimensionError(f"is {text}; write first..last with whole numbers, or uniform(lowest, highest)")
    if not rest[0]:
        raise DimensionError(f"is {text}, a range without end; write for example {first}..{int(first) + 9}")
    if not all(_WHOLE_NUMBER.fullmatch(number) for number in rest):
        raise DimensionError(f"is {text}; write first..last with whole numbers, or uniform(lowest, highest)")
    start, end, step = int(first), int(rest[0]), int(rest[1]) if len(rest) == 2 else 1
    if step < 1 or start > end:
        raise DimensionError(f"is {text}, which is empty: a range goes up, in steps of 1 or more")
    if (end - start) // step >= MAX_GRID_VALUES:
        raise DimensionError(f"is {text}, which are more than {MAX_GRID_VALUES} values")
    return IntRange(start, end) if step == 1 else Choice(tuple(range(start, end + 1, step)))


def _from_sdk(kind: str, given: Mapping[str, Any]) -> Dimension:
    """Returns the dimension for a distribution in AzureML's terms."""
    if kind == _RANDINT:
        return _from_call(_RANDINT, [str(given.get("upper"))])
    if kind not in DIMENSIONS:
        raise DimensionError(f"has the type {kind!r}. {did_you_mean(kind, DIMENSIONS)} {_choices()}")
    if kind == Choice.kind:
        return _choice(given.get("values") or ())
    named = {_SDK_FIELDS.get(name, name): value for name, value in given.items()}
    cls = DIMENSIONS[kind]
    wanted = [field.name for field in fields(cls)]
    if sorted(named) != sorted(wanted) or not all(isinstance(value, (int, float)) for value in named.values()):
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise DimensionError(f"is {kind}({shown}); give numbers for {', '.join(_sdk_names(wanted))}")
    if cls in (LogUniform, QLogUniform):  # AzureML gives the exponents
        named.update(low=math.exp(named["low"]), high=math.exp(named["high"]))
    return _checked(cls(**named))


def _sdk_names(names_here: list[str]) -> list[str]:
    names = {value: name for name, value in _SDK_FIELDS.items()}
    return [names[name] for name in names_here]


def _choice(values: Sequence[Any]) -> Dimension:
    unusable = [value for value in values if not (value is None or isinstance(value, (str, int, float, bool)))]
    if unusable:
        raise DimensionError(f"has the value {unusable[0]!r}; values are texts, numbers, true, false or null")
    return _checked(Choice(tuple(values)))


def _checked(dimension: Dimension) -> Dimension:
    problems = dimension.problems()
    if problems:
        raise DimensionError(" and ".join(problems))
    return dimension


def _whole_numbers(kind: str, form: str, arguments: list[str], *, count: int) -> tuple[int, ...]:
    if len(arguments) != count or not all(_WHOLE_NUMBER.fullmatch(argument) for argument in arguments):
        raise DimensionError(f"is {kind}({', '.join(arguments)}); write {form} with whole numbers")
    return tuple(int(argument) for argument in arguments)


def _unquoted(word: str) -> ParameterValue:
    is_quoted = len(word) >= 2 and word[0] in "'\"" and word[-1] == word[0]
    return word[1:-1] if is_quoted else word


def _choices() -> str:
    return f"Choose {join_choices([*DIMENSIONS, 'first..last'])}."
