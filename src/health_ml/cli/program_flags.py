"""The flags of the small programs beside ``himl-runner``, and their help."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import param

from health_ml.cli.given import GivenFlag, apply, assign
from health_ml.cli.help import MAX_WIDTH, MIN_WIDTH, flag_lines
from health_ml.cli.tokens import tokenize
from health_ml.cli.unknown import unknown_flag_problems
from health_ml.deep_learning_config import parameters_of
from health_ml.errors import ArgumentsError


class ProgramFlags(param.Parameterized):
    """What every program can be told."""

    program: ClassVar[str]
    usage: ClassVar[str]
    summary: ClassVar[str]

    help = param.Boolean(default=False, doc="Show the flags and exit.")
    run = param.List(default=[], item_type=str, doc="Ids of the runs.")

    def add_problems(self, problems: list[str]) -> None:
        """Adds a sentence to the problems for each thing that does not fit together."""


FlagsT = TypeVar("FlagsT", bound=ProgramFlags)


def read_program_flags(flags: FlagsT, argv: Sequence[str], start_directory: Path) -> FlagsT:
    """Returns the flags with the values of a command line.

    :param argv: The arguments after the name of the program.
    :param start_directory: What relative paths are relative to.
    :raises ArgumentsError: With everything that is wrong with them.
    """
    line = tokenize(argv)
    parameters = parameters_of(flags)
    assigned = assign([GivenFlag(token) for token in line.tokens], parameters)
    problems: list[str] = []
    apply(flags, assigned.values, start_directory=start_directory, problems=problems)
    problems += unknown_flag_problems(assigned.rest, parameters)
    if strays := [*line.strays, *assigned.strays]:
        problems.append(f"{' '.join(strays)}: every argument has to belong to a flag.")
    flags.add_problems(problems)
    if problems:
        raise ArgumentsError("\n".join(problems), f"See {flags.program} --help.")
    # hi-ml's form 'experiment:run' works too: a run id needs no experiment.
    flags.run = [run_id.rpartition(":")[2] for run_id in flags.run]
    return flags


def program_help(flags: ProgramFlags) -> str:
    """Returns the help of a program, as wide as the terminal."""
    columns = max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size().columns - 1))
    lines = flag_lines(parameters_of(flags), columns)
    return "\n".join([flags.usage, "", textwrap.fill(flags.summary, columns), "", *lines])
