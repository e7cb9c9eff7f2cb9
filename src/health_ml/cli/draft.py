"""A command line on its way from text to a checked experiment config and container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import param

from health_ml.cli.command_line import CommandLine
from health_ml.cli.config_file import SOURCE_FILE, read_config_files
from health_ml.cli.given import SOURCE_COMMAND_LINE, Given, apply, assign
from health_ml.cli.precedence import is_same, values_of
from health_ml.deep_learning_config import parameters_of
from health_ml.errors import ArgumentsError
from health_ml.experiment_config import ExperimentConfig

SOURCE_DEFAULT = "default"


@dataclass
class Draft:
    """What is known so far of what the user asked for.

    :param pending: Values whose parameters are not known yet.
    :param sources: Where each value comes from, by name.
    :param presets: What the values of the user have replaced, by name.
    :param givens: The values of the user as they were given, by name.
    :param problems: One sentence for each thing that is wrong, so that all of them can be reported at once.
    """

    start_directory: Path
    config: ExperimentConfig = field(default_factory=ExperimentConfig)
    pending: list[Given] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    presets: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    givens: dict[str, Given] = field(default_factory=dict)

    def take(self, owner: param.Parameterized, parameters: Mapping[str, param.Parameter[Any]]) -> None:
        """Sets the pending values that belong to the parameters, and records where they come from."""
        assigned = assign(self.pending, parameters)
        self.pending = assigned.rest
        self.add_strays(assigned.strays)
        self.givens.update(assigned.values)
        self.presets.update(values_of(owner, assigned.values))
        self.sources.update(apply(owner, assigned.values, start_directory=self.start_directory, problems=self.problems))

    def add_strays(self, strays: Sequence[str]) -> None:
        """Records tokens that belong to no flag."""
        self.problems += [
            f"Unexpected argument {stray!r}: a value follows its flag, and the items of a list are joined by commas."
            for stray in strays
        ]

    def raise_problems(self) -> None:
        """Raises one error for everything that is wrong so far."""
        model = f" --model={self.config.model}" if self.config.model else ""
        raise_problems(self.problems, hint=f"See himl-runner{model} --help.")

    def names_from_user(self) -> list[str]:
        """Returns the names of the values that the user gave."""
        return [name for name, source in self.sources.items() if source.startswith((SOURCE_COMMAND_LINE, SOURCE_FILE))]

    @property
    def asks_for_several(self) -> bool:
        """True if a flag that stands for several trials was given; whether it means that, the model decides."""
        names = {"different_seeds", "hyperdrive", "crossval_count"}
        return bool(self.config.sweep or self.config.fan_out or names & {given.name for given in self.pending})

    def typed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values that the user typed: those of the command line, and what config files change.

        A file that ``--print_config`` wrote holds every value; those that are as they were anyway do not count.
        """
        return {
            name: values[name]
            for name in self.names_from_user()
            if self.sources[name] == SOURCE_COMMAND_LINE
            or name not in self.presets
            or not is_same(values[name], self.presets[name])
        }


def read_experiment(command: CommandLine, *, start_directory: Path) -> Draft:
    """Returns a draft with the flags that do not depend on the model; what is left is for the container."""
    draft = Draft(start_directory, problems=list(command.problems))
    draft.add_strays(command.strays)
    draft.pending = [*read_config_files(command.config_files, start_directory=start_directory), *command.flags]
    parameters = parameters_of(draft.config)
    draft.sources = dict.fromkeys(parameters, SOURCE_DEFAULT)
    draft.take(draft.config, parameters)
    return draft


def raise_problems(problems: Sequence[str], *, hint: str = "") -> None:
    """Raises one error for all problems, if there are any.

    :raises ArgumentsError: With one line for each problem.
    """
    if len(problems) == 1:
        raise ArgumentsError(problems[0], hint)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ArgumentsError(f"{len(problems)} things are wrong with the arguments:\n{lines}\n", hint)
