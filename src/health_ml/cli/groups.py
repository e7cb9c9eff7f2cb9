"""The groups in which flags are shown: what only the container has, then what every container has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import param

from health_ml.cli.command_line import RESERVED
from health_ml.deep_learning_config import CONTAINER_PARAMETER_GROUPS, parameters_of
from health_ml.experiment_config import ExperimentConfig


@dataclass(frozen=True)
class Group:
    """Parameters that belong together.

    :param title: What they are about, a phrase without full stop.
    """

    title: str
    parameters: dict[str, param.Parameter[Any]]


def container_parameters(container: param.Parameterized) -> dict[str, param.Parameter[Any]]:
    """Returns the parameters of a container that have a flag: names of the runner's own flags are left out."""
    taken = {*parameters_of(ExperimentConfig), *RESERVED}
    return {name: parameter for name, parameter in parameters_of(container).items() if name not in taken}


def container_groups(container: param.Parameterized | None = None) -> Iterator[Group]:
    """Yields the groups of parameters of a container, or those that every container has."""
    common = {name for group in CONTAINER_PARAMETER_GROUPS for name in parameters_of(group)}
    current = container_parameters(container) if container is not None else {}
    own = {name: parameter for name, parameter in current.items() if name not in common}
    if own:
        yield Group(f"{type(container).__name__}: parameters of this container", own)
    for class_ in CONTAINER_PARAMETER_GROUPS:
        parameters = parameters_of(class_)
        if container is not None:
            parameters = {name: current[name] for name in parameters if name in current}
        yield Group(title_of(class_), parameters)


def title_of(class_: type[param.Parameterized]) -> str:
    """Returns the first sentence of the docstring of a class, which is the title of its group."""
    first_line = (class_.__doc__ or class_.__name__).strip().splitlines()[0]
    return first_line.split(". ")[0].rstrip(".").replace("``", "")
