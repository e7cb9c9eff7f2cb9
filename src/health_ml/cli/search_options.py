"""From flags, config files and the container to the search space of a fan-out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_ml.cli import arguments
from health_ml.cli.config_file import TRAINER_PREFIX
from health_ml.cli.groups import container_parameters
from health_ml.cli.trainer_arguments import ARGUMENTS_OF_THE_RUNNER, ARGUMENTS_WITH_FLAG, trainer_signature
from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError, ContainerError, PlanError
from health_ml.experiment_config import ExperimentConfig
from health_ml.planning.dimensions import ParameterValue
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.search_space import SearchSpace
from health_ml.planning.secrets import mask_value
from health_ml.training.user_code import user_code

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer

_VALUES_TO_CHECK = 100
"""How many values of each varied parameter are tried before anything starts."""


def find_search_space(
    config: ExperimentConfig,
    container: LightningContainer,
    typed: Mapping[str, Any],
    *,
    environment: RunEnvironment,
    start_directory: Path,
) -> SearchSpace | None:
    """Returns what the trials vary, or None for a single run. A trial is a single run whatever its container says.

    :param typed: The values that the user typed, by name.
    :param start_directory: Where the command was typed.
    :raises PlanError: With everything that is wrong with the search.
    """
    if environment.is_trial:
        return None
    known = {*container_parameters(container), *_trainer_arguments()}
    options = FanOutOptions(
        different_seeds=container.different_seeds,
        crossval_count=container.crossval_count,
        crossval_index=container.crossval_index,
        tuning_args=_tuning_args(container, start_directory) if container.hyperdrive else None,
        sweep=config.sweep,
        fan_out=config.fan_out or None,
        settings={
            "sampling": config.sampling,
            "sampling_seed": config.sampling_seed,
            "max_trials": config.max_trials,
            "max_concurrent": config.max_concurrent_trials,
            "primary_metric": config.primary_metric or None,
            "goal": config.goal,
            "early_termination": config.early_termination,
        },
    )
    space = build_search_space(options, known_parameters=known)
    if space is None:
        if config.fail_fast:
            raise PlanError("--fail_fast has no effect on a single run.", "Add --sweep or --different_seeds.")
        return None
    _check_secrets(space)
    _check_values(space, config, container, typed)
    return space


def _check_secrets(space: SearchSpace) -> None:
    """Raises if a value of a trial is a secret: plans, tables of results and MLflow show what trials were given.

    :raises PlanError: Naming the parameters.
    """
    names = [
        name
        for name, dimension in space.dimensions
        if any(mask_value(name, value) != value for value in dimension.grid() or ())
    ]
    if names:
        raise PlanError(
            f"A search shows the values of its trials, and those of {', '.join(names)} are secrets.",
            "Give one value to all trials, in a variable of the environment or as a flag; or vary a name, and let the "
            "container look up the secret that it stands for.",
        )


def _trainer_arguments() -> set[str]:
    own = {*ARGUMENTS_WITH_FLAG, *ARGUMENTS_OF_THE_RUNNER}
    return {TRAINER_PREFIX + name for name in trainer_signature() if name not in own}


def _tuning_args(container: LightningContainer, folder: Path) -> Mapping[str, Any]:
    """Returns the search that the container defines, in the form of version 2 of the SDK or else of version 1."""
    name = type(container).__name__
    if _overrides(container, "get_parameter_tuning_args"):
        with user_code(container, "get_parameter_tuning_args", "It has to return a dictionary."):
            found = container.get_parameter_tuning_args()
        if not isinstance(found, Mapping):
            raise ContainerError(
                f"{name}.get_parameter_tuning_args returned {found!r}.", "It has to return a dictionary."
            )
        return found
    if _overrides(container, "get_parameter_tuning_config"):
        from health_ml.azure.hyperdrive_v1 import tuning_args_of

        with user_code(container, "get_parameter_tuning_config", "It has to return a HyperDriveConfig."):
            return tuning_args_of(container.get_parameter_tuning_config, folder=folder)
    raise PlanError(
        f"--hyperdrive: {name} defines no search.",
        "Override get_parameter_tuning_args in the container, or give --sweep instead.",
    )


def _overrides(container: LightningContainer, method: str) -> bool:
    from health_ml.lightning_container import LightningContainer as Base  # loads torch, as the model has by now

    return getattr(type(container), method) is not getattr(Base, method)


def _check_values(
    space: SearchSpace, config: ExperimentConfig, container: LightningContainer, typed: Mapping[str, Any]
) -> None:
    problems = [
        f"--{name} is given and varied by {', '.join(space.sources)}: leave one of them out."
        for name in space.parameter_names
        if name in typed
    ]
    parameters = container_parameters(container)
    for name, dimension in space.dimensions:
        if name in parameters:
            for value in (dimension.grid() or ())[:_VALUES_TO_CHECK]:
                problem = _value_problem(container, name, value)
                problems += [f"--{name}={value}: {problem}"] if problem else []
    if problems:
        raise PlanError(" ".join(problems), f"See himl-runner --model={config.model} --help.")


def _value_problem(container: LightningContainer, name: str, value: ParameterValue) -> str:
    """Returns why a parameter cannot have a value, or an empty text; the container is left as it was."""
    before = getattr(container, name)
    try:
        setattr(container, name, arguments.parse_text(container_parameters(container)[name], str(value)))
    except (ValueError, TypeError, ArgumentsError) as error:
        return str(error)
    finally:
        setattr(container, name, before)
    return ""
