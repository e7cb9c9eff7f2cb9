"""Translates a ``HyperDriveConfig`` of version 1 of the AzureML SDK, which containers written for it return.

The configuration keeps what it was given in plain dictionaries; their form is that of azureml-train-core 1.61.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from health_ml.errors import PlanError

logger = logging.getLogger(__name__)

SAMPLING = {"GRID": "grid", "RANDOM": "random", "BayesianOptimization": "bayesian"}
POLICIES = {"Bandit": "bandit", "MedianStopping": "median_stopping", "TruncationSelection": "truncation_selection"}
NO_POLICY = "Default"
POLICY_SETTINGS = frozenset(
    {"evaluation_interval", "delay_evaluation", "slack_factor", "slack_amount", "truncation_percentage"}
)
ARGUMENTS = {
    "uniform": ("min_value", "max_value"),
    "loguniform": ("min_value", "max_value"),
    "quniform": ("min_value", "max_value", "q"),
    "qloguniform": ("min_value", "max_value", "q"),
    "normal": ("mu", "sigma"),
    "lognormal": ("mu", "sigma"),
    "qnormal": ("mu", "sigma", "q"),
    "qlognormal": ("mu", "sigma", "q"),
    "randint": ("upper",),
    "choice": ("values",),
}
"""What the arguments of a distribution of version 1 are called in version 2."""


def tuning_args_of(get_config: Callable[[Any], Any], *, folder: Path) -> dict[str, Any]:
    """Returns the search of a ``HyperDriveConfig`` in the form of ``get_parameter_tuning_args``.

    :param get_config: The container's ``get_parameter_tuning_config``: takes a run configuration of version 1.
    :param folder: A folder, which version 1 wants to know before it makes a configuration.
    :raises PlanError: If version 1 of the SDK is not installed, or the configuration cannot be translated.
    """
    try:
        from azureml.core import ScriptRunConfig
        from azureml.train.hyperdrive import HyperDriveConfig
    except ImportError as error:
        raise PlanError(
            "--hyperdrive: the container defines its search with version 1 of the AzureML SDK, which is not "
            f"installed ({error}).",
            "Install himl-runner[v1], or define the search in get_parameter_tuning_args.",
        ) from error
    config = get_config(ScriptRunConfig(source_directory=str(folder), command=["himl-runner"]))
    if not isinstance(config, HyperDriveConfig):
        raise PlanError(f"get_parameter_tuning_config returned {config!r}.", "It has to return a HyperDriveConfig.")
    return translated(vars(config))


def translated(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tuning arguments for the attributes of a ``HyperDriveConfig``.

    :raises PlanError: With everything that has no counterpart.
    """
    problems: list[str] = []
    generator, metric = fields["_generator_config"], fields["_primary_metric_config"]
    sampling = SAMPLING.get(generator["name"])
    if sampling is None:
        problems.append(f"the sampling {generator['name']!r} is not known.")
    parameters = {
        name: _distribution(name, kind, arguments, problems)
        for name, (kind, arguments) in generator["parameter_space"].items()
    }
    policy = _policy(fields["_policy_config"], problems)
    if problems:
        raise PlanError(
            f"get_parameter_tuning_config returned a search that cannot be translated: {' '.join(problems)}",
            "Define the search in get_parameter_tuning_args.",
        )
    return {
        "parameter_sampling": parameters,
        "sampling_algorithm": sampling,
        "max_total_trials": fields["_max_total_runs"],
        "max_concurrent_trials": fields["_max_concurrent_runs"],
        "timeout": fields["_max_duration_minutes"] * 60,
        "primary_metric": metric["name"],
        "goal": metric["goal"],
        **({"early_termination": policy} if policy else {}),
    }


def _distribution(name: str, kind: str, arguments: Sequence[Any], problems: list[str]) -> dict[str, Any]:
    names = ARGUMENTS.get(kind, ())
    if len(names) != len(arguments):
        problems.append(f"{name} has the distribution {kind}{tuple(arguments)}, which is not known.")
        return {}
    return {"type": kind, **dict(zip(names, arguments, strict=True))}


def _policy(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any] | None:
    if config["name"] == NO_POLICY:
        return None
    if config["name"] not in POLICIES:
        problems.append(f"the early termination policy {config['name']!r} is not known.")
        return None
    settings = config.get("properties", {})
    if settings.get("exclude_finished_jobs"):
        problems.append("exclude_finished_jobs of the truncation policy has no counterpart.")
    return {
        "type": POLICIES[config["name"]],
        **{name: value for name, value in settings.items() if name in POLICY_SETTINGS},
    }
