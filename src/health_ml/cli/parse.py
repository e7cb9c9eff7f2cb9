"""From the command line and config files to an experiment config and a container.

A value is the one on the command line, else the one in a config file, else that of the model variant, else that of
the container, else that of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import param

from health_ml.backends.registry import load_backend, parse_cluster
from health_ml.cli.command_line import read_command_line
from health_ml.cli.config_file import TRAINER_PREFIX
from health_ml.cli.draft import Draft, raise_problems, read_experiment
from health_ml.cli.effects import check_combination
from health_ml.cli.given import Given
from health_ml.cli.groups import container_parameters
from health_ml.cli.loading import (
    call_user_code,
    load_container,
    make_paths_absolute,
    update_experiment_config,
)
from health_ml.cli.search_options import find_search_space
from health_ml.cli.trainer_arguments import is_trainer_argument, read_trainer_arguments, value_problems
from health_ml.cli.unknown import unknown_flag_problems
from health_ml.deep_learning_config import parameters_of
from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError
from health_ml.experiment_config import ExperimentConfig
from health_ml.planning.search_space import SearchSpace
from health_ml.planning.secrets import remember_secrets
from health_ml.training.effective import check_effective_ahead

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer


@dataclass(frozen=True)
class ParsedCommand:
    """What the user asked for, complete and checked.

    :param sources: Where each value comes from, by name; Trainer arguments as ``trainer.<argument>``.
    :param argv: The command line as it was given.
    :param typed: The values that the user typed, by name.
    :param givens: The same values as they were given.
    :param search_space: What the trials vary, or None for a single run.
    """

    experiment_config: ExperimentConfig
    container: LightningContainer
    sources: dict[str, str]
    argv: tuple[str, ...]
    typed: dict[str, Any] = field(default_factory=dict)
    givens: dict[str, Given] = field(default_factory=dict)
    search_space: SearchSpace | None = None

    @property
    def parameters(self) -> dict[str, param.Parameter[Any]]:
        """The declarations of all flags by name."""
        return {**container_parameters(self.container), **parameters_of(self.experiment_config)}


def parse(argv: Sequence[str], *, start_directory: Path, environment: RunEnvironment | None = None) -> ParsedCommand:
    """Returns the experiment config and the container that a command line describes.

    :param start_directory: Where the command was typed: relative paths in it are relative to this folder.
    :param environment: Where this process runs; decides which flags have an effect.
    :raises ArgumentsError: With everything that is wrong with the arguments.
    :raises ModelSearchError: If the model is not found.
    :raises PlanError: If what is asked for cannot run here.
    """
    draft = read_experiment(read_command_line(argv), start_directory=start_directory)
    return complete(draft, argv, environment=environment or RunEnvironment())


def complete(draft: Draft, argv: Sequence[str], *, environment: RunEnvironment) -> ParsedCommand:
    """Returns the container with everything that the user gave, and the experiment config."""
    container = load_container(draft)
    apply_to_container(draft, container)
    remember_secrets({name: getattr(container, name) for name in container_parameters(container)})
    draft.raise_problems()
    update_experiment_config(draft, container)
    make_paths_absolute(container, draft.start_directory)
    typed = _typed(draft, container)
    container.set_typed_parameters(typed)
    cluster = "" if environment.is_in_azureml else draft.config.cluster
    backend = load_backend(parse_cluster(cluster).backend) if cluster else None
    problems = check_combination(draft.config, container, typed, environment=environment, backend=backend)
    if backend is None:  # a job runs on a machine with other devices
        problems += value_problems(container.trainer_argument_overrides)
    try:
        call_user_code(container, "validate")
    except ArgumentsError as error:
        if not problems:
            raise
        raise_problems([error.message, *problems], hint=error.hint)
    raise_problems(problems)
    space = find_search_space(
        draft.config, container, typed, environment=environment, start_directory=draft.start_directory
    )
    check_effective_ahead(container, draft.sources, varied=space.parameter_names if space else ())
    return ParsedCommand(draft.config, container, draft.sources, tuple(argv), typed, draft.givens, space)


def apply_to_container(draft: Draft, container: LightningContainer) -> None:
    """Sets the parameters of the container that the user gave, and the arguments of the Lightning Trainer."""
    parameters = container_parameters(container)
    draft.take(container, parameters)
    for_trainer = [given for given in draft.pending if is_trainer_argument(given)]
    unknown = [given for given in draft.pending if not is_trainer_argument(given)]
    draft.pending = []
    strays: list[str] = []
    values, sources = read_trainer_arguments(for_trainer, problems=draft.problems, strays=strays)
    container.trainer_argument_overrides.update(values)
    draft.sources.update(sources)
    draft.givens.update({given.name: given for given in for_trainer})
    draft.problems += unknown_flag_problems(unknown, [*parameters_of(draft.config), *parameters])
    draft.add_strays(strays)


def _typed(draft: Draft, container: LightningContainer) -> dict[str, Any]:
    values = {
        **{name: getattr(container, name) for name in container_parameters(container)},
        **{name: getattr(draft.config, name) for name in parameters_of(draft.config)},
        **{TRAINER_PREFIX + name: value for name, value in container.trainer_argument_overrides.items()},
    }
    return draft.typed(values)
