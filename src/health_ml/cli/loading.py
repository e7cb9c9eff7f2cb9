"""Loads the container that ``--model`` names, and calls its methods that belong to the command line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_ml.cli.draft import SOURCE_DEFAULT, Draft, raise_problems
from health_ml.cli.given import absolute
from health_ml.cli.groups import container_parameters
from health_ml.cli.precedence import changed_names, is_same, values_of
from health_ml.deep_learning_config import CONTAINER_PARAMETER_GROUPS, DatasetParams, OutputParams, parameters_of
from health_ml.environment import paused_garbage_collection
from health_ml.errors import ArgumentsError, HimlError

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer

logger = logging.getLogger(__name__)

SOURCE_UPDATE = "update_experiment_config"


def load_container(draft: Draft) -> LightningContainer:
    """Returns the container that ``--model`` names, in the variant that ``--model_variant`` names.

    :raises ArgumentsError: If there is no ``--model``, or together with other things that are wrong.
    :raises ModelSearchError: If the model is not found.
    """
    try:
        return _load_container(draft)
    except HimlError as error:
        if draft.problems:
            raise_problems([*draft.problems, error.message], hint=error.hint)
        raise


def _load_container(draft: Draft) -> LightningContainer:
    if not draft.config.model:
        raise ArgumentsError(
            "Parameter 'model' needs to be set to specify which model to run.",
            "Try --model=HelloWorld, or --model=<package>.<class name> for your own container; the current folder is "
            "importable.",
        )
    from health_ml.cli.model_search import create_container, find_container  # the model imports torch

    with paused_garbage_collection():
        container = create_container(find_container(draft.config.model, folder=draft.start_directory))
    names = container_parameters(container)
    _warn_about_hidden_parameters(container, set(parameters_of(container)) - set(names))
    built = values_of(container, names)
    variant = draft.config.model_variant
    call_user_code(container, "set_model_variant", variant)
    for name, value in values_of(container, names).items():
        draft.sources[name] = source_in_container(container, name, value)
    if variant:
        draft.sources.update(dict.fromkeys(changed_names(container, built), f"model variant {variant}"))
    return container


def source_in_container(container: LightningContainer, name: str, value: Any) -> str:
    """Returns where the value of a parameter that the user has not set comes from: the package or the container."""
    for group in CONTAINER_PARAMETER_GROUPS:
        if name in group.param and is_same(value, group.param[name].default):
            return SOURCE_DEFAULT
    return f"container {type(container).__name__}"


def _warn_about_hidden_parameters(container: LightningContainer, hidden: set[str]) -> None:
    if hidden:
        logger.warning(
            "%s declares parameters with the names of flags of the runner: %s. They keep their defaults; rename them "
            "to set them on the command line.",
            type(container).__name__,
            ", ".join(sorted(hidden)),
        )


def call_user_code(container: LightningContainer, method: str, *arguments: Any) -> None:
    """Calls a method of the container; a ValueError, which says what is wrong with a value, reaches the user as text.

    :raises ArgumentsError: With the text of the ValueError.
    :raises ContainerError: With the line of the user's code, if the method raises anything else.
    """
    from health_ml.training.user_code import user_code  # the container has loaded what it imports

    with user_code(container, method):
        try:
            getattr(container, method)(*arguments)
        except HimlError:
            raise
        except ValueError as error:
            raise ArgumentsError(str(error) or type(error).__name__) from error


def update_experiment_config(draft: Draft, container: LightningContainer) -> None:
    """Lets the container change the experiment config, except for what the user gave.

    The method runs when the container has the values of the user, so that it can decide by them.
    """
    names = parameters_of(draft.config)
    from_user = set(draft.names_from_user())
    before = values_of(draft.config, names)
    before_in_container = values_of(container, from_user & set(container_parameters(container)))
    call_user_code(container, "update_experiment_config", draft.config)
    for name in changed_names(draft.config, before):
        if name in from_user:
            logger.info("update_experiment_config changes %s, but the value that was given wins.", name)
            setattr(draft.config, name, before[name])
        else:
            draft.sources[name] = SOURCE_UPDATE
    for name in changed_names(container, before_in_container):
        setattr(container, name, before_in_container[name])
    container.num_nodes = draft.config.num_nodes
    container.runner_mode = draft.config.mode


def make_paths_absolute(container: LightningContainer, start_directory: Path) -> None:
    """Makes the paths of the package's own parameters absolute, wherever they come from.

    The working directory changes before they are used, and a container may name them relative to where it is run.
    """
    for group in (DatasetParams, OutputParams):
        for name, parameter in parameters_of(group).items():
            value = getattr(container, name)
            changed = absolute(parameter, value, start_directory)
            if changed != value:
                setattr(container, name, changed)
