"""Values that the user gave, on the command line or in a file, before the parameters they belong to are known."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import param

from health_ml.cli import arguments
from health_ml.cli.describe import is_boolean, metavar
from health_ml.cli.tokens import Token

_log = logging.getLogger(__name__)

SOURCE_COMMAND_LINE = "command line"
NEGATION = "no_"

Parameters = Mapping[str, param.Parameter[Any]]


class Given(Protocol):
    """A value from the user: its name, where it comes from, and how it reads as a parameter."""

    @property
    def name(self) -> str:
        """Name with underscores."""

    @property
    def source(self) -> str:
        """Where it comes from."""

    @property
    def shown(self) -> str:
        """How to name it in a message."""

    @abstractmethod
    def leftover(self, parameter: param.Parameter[Any]) -> str | None:
        """Returns a token that came after the flag and is not its value."""

    @abstractmethod
    def is_left_empty(self, parameter: param.Parameter[Any]) -> bool:
        """Returns whether there is no value where there has to be one, so that nothing can be meant."""

    @abstractmethod
    def text_for(self, parameter: param.Parameter[Any]) -> str | None:
        """Returns the text that stands for the value on a command line, or None if it is no text."""

    @abstractmethod
    def value_for(self, parameter: param.Parameter[Any], *, keeps_whole_numbers: bool) -> Any:
        """Returns the value as the parameter takes it.

        :raises ValueError: If it cannot be read.
        """


@dataclass(frozen=True)
class GivenFlag:
    """A flag of the command line."""

    token: Token
    is_negated: bool = False
    source: str = SOURCE_COMMAND_LINE

    @property
    def name(self) -> str:
        """Name with underscores."""
        return self.token.name

    @property
    def shown(self) -> str:
        """The flag as it was typed."""
        return self.token.shown

    def leftover(self, parameter: param.Parameter[Any]) -> str | None:
        """Returns the token after a switch if it is no word for on or off."""
        following = self.token.following
        if following is None or not is_boolean(parameter):
            return None
        return following if self.is_negated or not arguments.is_boolean_word(following) else None

    def is_left_empty(self, parameter: param.Parameter[Any]) -> bool:
        """Returns whether the value is an empty text that cannot be meant."""
        text = self.text_for(parameter)
        return text is not None and arguments.is_left_empty(parameter, text)

    def text_for(self, parameter: param.Parameter[Any]) -> str | None:
        """Returns the value as it was typed; a switch without value is on, and off if it starts with ``--no-``."""
        if self.is_negated:
            return "false"
        text = self.token.text
        if text is None and is_boolean(parameter):
            has_word = self.token.following is not None and self.leftover(parameter) is None
            return self.token.following if has_word else "true"
        return self.token.following if text is None else text

    def value_for(self, parameter: param.Parameter[Any], *, keeps_whole_numbers: bool) -> Any:
        """Returns the value of the flag."""
        if self.is_negated and self.token.text is not None:
            raise ValueError("a flag that starts with --no takes no value.")
        text = self.text_for(parameter)
        if text is None:
            raise ValueError(
                f"needs a value: {self.token.typed}={metavar(parameter)}. A value that starts with -- has "
                "to come after '='."
            )
        return arguments.parse_text(parameter, text, keeps_whole_numbers=keeps_whole_numbers)


@dataclass
class Assigned:
    """What the user gave for a set of parameters, and the rest."""

    values: dict[str, Given] = field(default_factory=dict)
    rest: list[Given] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


def assign(givens: Iterable[Given], parameters: Parameters) -> Assigned:
    """Returns for each parameter the last value given for it, and the values that belong to no parameter.

    What was left empty is said, and changes nothing.
    """
    assigned = Assigned()
    for given in givens:
        name, resolved = _resolve(given, parameters)
        if name is None:
            assigned.rest.append(given)
            continue
        if resolved.is_left_empty(parameters[name]):
            warn_left_empty(resolved)
            continue
        assigned.values[name] = resolved
        leftover = resolved.leftover(parameters[name])
        if leftover is not None:
            assigned.strays.append(leftover)
    return assigned


def warn_left_empty(given: Given) -> None:
    """Says that a value is empty where nothing can be meant by that."""
    _log.warning("%s is empty and changes nothing. Is a variable of the shell not set?", given.shown)


def _resolve(given: Given, parameters: Parameters) -> tuple[str | None, Given]:
    if given.name in parameters:
        return given.name, given
    positive = given.name.removeprefix(NEGATION)
    is_negation = positive != given.name and positive in parameters and is_boolean(parameters[positive])
    if is_negation and isinstance(given, GivenFlag):
        return positive, GivenFlag(given.token, is_negated=True)
    return None, given


def apply(
    owner: param.Parameterized, values: Mapping[str, Given], *, start_directory: Path, problems: list[str]
) -> dict[str, str]:
    """Sets the parameters of an object and returns the source of each value.

    :param start_directory: What relative paths are relative to; the working directory changes before they are used.
    :param problems: Receives one sentence for each value that cannot be used.
    """
    sources: dict[str, str] = {}
    parameters = owner.param.objects(instance=False)
    for name, given in values.items():
        parameter = parameters[name]
        try:
            value = given.value_for(parameter, keeps_whole_numbers=_keeps_whole_numbers(owner, name))
            setattr(owner, name, absolute(parameter, value, start_directory))
        except (ValueError, TypeError) as error:
            problems.append(f"{given.shown}: {_plain_text(error, name)}")
            continue
        sources[name] = given.source
    return sources


def _keeps_whole_numbers(owner: param.Parameterized, name: str) -> bool:
    """True unless the first class that declares the number gives it a default with a fraction.

    A learning rate of ``1`` has to be a float as its default is, while ``1`` and ``1.0`` mean different things for
    a number of batches, even in a container that changes its default to 0.5.
    """
    for class_ in reversed(type(owner).__mro__):
        declared = vars(class_).get(name)
        if isinstance(declared, param.Parameter):
            return not isinstance(declared.default, float)
    return True


ANYWHERE_ELSE = frozenset({"dataset_mountpoints"})
"""Parameters whose paths are not paths on this machine."""


def absolute(parameter: param.Parameter[Any], value: Any, start_directory: Path) -> Any:
    """Returns the value with each relative path in it made absolute."""
    if parameter.name in ANYWHERE_ELSE:
        return value
    if isinstance(value, list):
        return [absolute(parameter, item, start_directory) for item in value]
    if isinstance(value, Path):
        return _absolute_path(value, start_directory)
    if isinstance(parameter, param.Path) and isinstance(value, str):
        return str(_absolute_path(Path(value), start_directory))
    return value


def _absolute_path(path: Path, start_directory: Path) -> Path:
    try:
        return start_directory / path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"the home folder in {str(path)!r} is not known.") from error


def _plain_text(error: Exception, name: str) -> str:
    """Returns the text of an error without the class that param puts before the name of the parameter."""
    import re

    return re.sub(r"^\w+ parameter '[\w.]*'", f"Parameter '{name}'", str(error))
