"""The command line of a job in AzureML: a text for a shell, in which AzureML replaces ``${{...}}`` before it runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from health_ml.azure.job_start import RUNNER, START_FILE
from health_ml.errors import PlanError
from health_ml.planning.dimensions import ParameterValue
from health_ml.planning.search_space import SearchSpace

_EXPRESSION = re.compile(r"\{(?=\{|inputs\.|outputs\.|search_space\.)")
"""Where AzureML or its SDK would see an expression; the SDK takes also those with a single bracket."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_]")


def job_command(argv: Sequence[str], names: Mapping[str, str] | None = None) -> str:
    """Returns the command of a job, which hands exactly these arguments to the runner.

    :param argv: The arguments.
    :param names: In a search: the name in AzureML of each parameter that varies, by its name as a flag.
    """
    words = [quoted(argument) for argument in argv]
    words += [f"'--{name}=${{{{search_space.{encoded}}}}}'" for name, encoded in (names or {}).items()]
    return " ".join(["python", START_FILE, RUNNER, *words])


def quoted(argument: str) -> str:
    """Returns an argument as a word of a shell's command line in which AzureML finds nothing to replace."""
    # Two quotes that hold nothing, between quotes, are no character for the shell.
    return _EXPRESSION.sub("{''", shlex.quote(argument))


def encoded_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a name that AzureML takes for each parameter: letters, digits and underscores, not a digit at first."""
    found: dict[str, str] = {}
    for name in names:
        encoded = _NOT_IN_NAMES.sub("_", name)
        encoded = f"_{encoded}" if encoded[:1].isdigit() else encoded
        while encoded in found.values():
            encoded += "_"
        found[name] = encoded
    return found


def check_values(space: SearchSpace) -> None:
    """Raises an error if a value cannot be put between the quotes of the command.

    :raises PlanError: With all such values.
    """
    wrong = [
        f"{name}={value!r}"
        for name, dimension in space.dimensions
        for value in dimension.grid() or ()
        if _breaks_quotes(value)
    ]
    if wrong:
        raise PlanError(
            f"AzureML writes the values of a search into a command line, where {', '.join(wrong)} would not arrive as "
            "it is: a value may hold no single quote, line break or expression in ${{ }}.",
            "Use other values, for example names that the container translates.",
        )


def _breaks_quotes(value: ParameterValue) -> bool:
    return isinstance(value, str) and ("'" in value or "\n" in value or "${{" in value)
