"""The flags that work with commands about a run that exists: which store of runs to look into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from health_ml.cli.command_line import CommandLine
from health_ml.cli.draft import read_experiment
from health_ml.cli.unknown import flags_without_effect
from health_ml.deep_learning_config import OutputParams, parameters_of
from health_ml.experiment_config import ExperimentConfig


@dataclass(frozen=True)
class StoreFlags:
    """The flags of a command about a run.

    :param config: Where and how to run, as far as it has an effect.
    :param output_to: The store to search before the default one, or None.
    """

    config: ExperimentConfig
    output_to: Path | None


def read_store_flags(
    command: CommandLine, *, start_directory: Path, mode: str, allowed: frozenset[str] = frozenset()
) -> StoreFlags:
    """Returns the flags of a command about a run.

    :param mode: The flag that says what to do, for messages.
    :param allowed: Names of the flags that have an effect besides ``--output_to``.
    :raises ArgumentsError: If others were given.
    """
    draft = read_experiment(command, start_directory=start_directory)
    output = OutputParams()
    draft.take(output, parameters_of(output))
    given = {*draft.names_from_user(), *(given.name for given in draft.pending)}
    draft.problems += flags_without_effect(given - allowed - {"output_to", "log_level"}, mode=mode)
    if output.output_to is not None and not output.output_to.is_dir():
        draft.problems.append(f"--output_to={output.output_to}: there is no such folder.")
    draft.raise_problems()
    return StoreFlags(draft.config, output.output_to)
