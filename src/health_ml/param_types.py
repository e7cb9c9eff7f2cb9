"""Parameter types that ``param`` lacks, and what a type has to offer to become a flag."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from typing import Any

import param


class IntTuple(param.NumericTuple):  # type: ignore[type-arg]
    """A tuple of whole numbers of fixed length, for example ``(64, 64)``."""

    def _validate_value(self, val: Any, allow_None: bool) -> None:
        super()._validate_value(val, allow_None)
        if val is None:
            return
        for number in val:
            if isinstance(number, bool) or not isinstance(number, int):
                raise ValueError(f"Tuple parameter {self.name!r} takes whole numbers, not {number!r}.")


class FiniteNumber(param.Number):  # type: ignore[type-arg]
    """A number that is neither infinite nor NaN, which no bounds keep out."""

    def _validate_value(self, value: Any, allow_None: bool) -> None:
        super()._validate_value(value, allow_None)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"Number parameter {self.name!r} takes finite numbers, not {value}.")


class FractionTuple(param.NumericTuple):  # type: ignore[type-arg]
    """A tuple of numbers of fixed length, each at least 0 and below 1, for example ``(0.9, 0.999)``."""

    def _validate_value(self, value: Any, allow_None: bool) -> None:
        super()._validate_value(value, allow_None)
        for number in value or ():
            if not 0 <= number < 1:
                raise ValueError(
                    f"Tuple parameter {self.name!r} takes numbers of at least 0 and below 1, not {number}."
                )


class CustomTypeParam(param.Parameter):  # type: ignore[type-arg]
    """Base class for parameters with their own text form.

    A subclass says in :meth:`from_string` how to read a value from the command line, and checks a value in
    ``_validate``, which raises ValueError with a message for the user.
    """

    @abstractmethod
    def from_string(self, x: str) -> Any:
        """Returns the value that the text stands for.

        :raises ValueError: If it stands for none; the message reaches the user.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement from_string to be used as a flag.")


class ListOrDictParam(CustomTypeParam):
    """A list of strings, or a dictionary: ``a,b``, ``['a', 'b']`` or ``{'a': 1}``."""

    def _validate(self, val: Any) -> None:
        if val is None and self.allow_None:
            return
        if not isinstance(val, (list, dict)):
            raise ValueError(f"Parameter {self.name!r} takes a list or a dictionary, not {val!r}.")

    def from_string(self, x: str) -> Any:
        """Returns the list or dictionary that the text stands for: JSON, a Python literal, or a comma list."""
        text = x.strip()
        if text[:1] not in ("{", "["):
            return [item.strip() for item in text.split(",") if item.strip()]
        return json_or_literal(text)


class RunIdOrListParam(CustomTypeParam):
    """One or several run ids: ``run1,run2`` or ``experiment:run1,run2``, always read as a list."""

    def _validate(self, val: Any) -> None:
        if val is None and self.allow_None:
            return
        if not isinstance(val, list) or not all(isinstance(run, str) and run for run in val):
            raise ValueError(f"Parameter {self.name!r} takes one or several run ids, not {val!r}.")

    def from_string(self, x: str) -> list[str]:
        """Returns the run ids in a comma list; ``experiment:`` before an id is dropped."""
        return [run.strip().rsplit(":", maxsplit=1)[-1] for run in x.split(",") if run.strip()]


def json_or_literal(text: str) -> Any:
    """Returns the value of a JSON text or, where quotes are single, of a Python literal."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as no_json:
        import ast  # only single-quoted text needs it

        try:
            return ast.literal_eval(text)
        except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
            # What Python says about a name names an object in memory.
            raise ValueError(f"{text!r} is neither JSON nor a Python literal: {no_json}.") from error
