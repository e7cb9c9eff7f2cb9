"""Turns every option that asks for several trials into one search space."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from health_ml.errors import PlanError, did_you_mean, join_choices
from health_ml.planning.dimension_text import DimensionError, dimension_from_value, split_outside_brackets
from health_ml.planning.dimensions import Dimension, IntRange
from health_ml.planning.duration import parse_duration
from health_ml.planning.early_termination import Goal, policy_from_value
from health_ml.planning.search_space import Sampling, SearchSpace, product

SEED_PARAMETER = "random_seed"
FOLD_PARAMETER = "crossval_index"
DEFAULT_METRIC_OF_TUNING = "val/loss"

# The keys of the dictionary that get_parameter_tuning_args returns, as hi-ml documents them for version 2 of the SDK;
# all but the first go to ``Command.sweep`` of azure.ai.ml.
TUNING_PARAMETERS = "parameter_sampling"
TUNING_KEYS = {
    "sampling_algorithm": "sampling",
    "max_total_trials": "max_trials",
    "max_concurrent_trials": "max_concurrent",
    "primary_metric": "primary_metric",
    "goal": "goal",
    "early_termination_policy": "early_termination",
    "early_termination": "early_termination",
    "timeout": "timeout_seconds",
    "trial_timeout": "trial_timeout_seconds",
}
FLAGS_OF_SETTINGS = {"max_concurrent": "max_concurrent_trials"}
FAN_OUT_PARAMETERS = "parameters"
FAN_OUT_KEYS = {
    "sampling": "sampling",
    "sampling_seed": "sampling_seed",
    "max_trials": "max_trials",
    "max_concurrent_trials": "max_concurrent",
    "primary_metric": "primary_metric",
    "goal": "goal",
    "early_termination": "early_termination",
    "timeout": "timeout_seconds",
    "trial_timeout": "trial_timeout_seconds",
}


@dataclass(frozen=True)
class FanOutOptions:
    """The options that ask for several trials, and those that shape the search; None: not given.

    :param different_seeds: Number of seeds.
    :param crossval_count: Number of folds.
    :param crossval_index: The fold to train, which means that there is no fan-out over folds.
    :param tuning_args: What the container's ``get_parameter_tuning_args`` returned, if ``--hyperdrive`` was given.
    :param sweep: Text of ``--sweep``.
    :param fan_out: The ``fan_out`` block of the YAML file.
    :param settings: Further options by the field of SearchSpace that they set: ``sampling``, ``sampling_seed``,
        ``max_trials``, ``max_concurrent``, ``primary_metric``, ``goal``, ``early_termination``. They win over those
        in ``tuning_args`` and ``fan_out``.
    """

    different_seeds: int = 0
    crossval_count: int = 1
    crossval_index: int | None = None
    tuning_args: Mapping[str, Any] | None = None
    sweep: str = ""
    fan_out: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None


def build_search_space(
    options: FanOutOptions, *, known_parameters: Collection[str] | None = None
) -> SearchSpace | None:
    """Returns the search space that the options ask for, or None if they ask for a single run.

    :param options: The options.
    :param known_parameters: Names of the parameters that a run can be given; None if they are not known.
    :raises PlanError: With everything that is wrong with them.
    """
    settings = {name: value for name, value in (options.settings or {}).items() if value is not None}
    spaces = list(_spaces(options))
    if not spaces:
        if settings:
            raise PlanError(
                f"{_flags(settings)} has no effect without a search.", "Add --sweep, --hyperdrive or --different_seeds."
            )
        return None
    # The flags belong to the search, not to the seeds or folds that it is multiplied with.
    last = spaces[-1]
    spaces[-1] = replace(last, **_read_settings(settings, source=_flags(settings)))
    space = product(spaces)
    space.check(known_parameters)
    return space


def space_of_seeds(count: int) -> SearchSpace:
    """Returns the space of the seeds 0 to ``count - 1``."""
    return SearchSpace(((SEED_PARAMETER, IntRange(0, count - 1)),), (f"--different_seeds={count}",))


def space_of_folds(count: int) -> SearchSpace:
    """Returns the space of the folds of a cross-validation."""
    return SearchSpace(((FOLD_PARAMETER, IntRange(0, count - 1)),), (f"--crossval_count={count}",))


def space_of_sweep(text: str) -> SearchSpace:
    """Returns the space that a text such as ``l_rate=1e-4,1e-3 random_seed=0..4`` describes.

    :raises PlanError: With everything that is wrong with it.
    """
    try:
        words = split_outside_brackets(text, " \t\n")
    except DimensionError as error:
        raise PlanError(f"--sweep {error}.", _SWEEP_HINT) from error
    problems = [f"{word!r} is no name=values." for word in words if not word.partition("=")[1] or word.startswith("=")]
    named = [(word.partition("=")[0].lstrip("-"), word.partition("=")[2]) for word in words]
    dimensions = _read_dimensions(named, problems)
    if problems:
        raise PlanError(f"--sweep cannot be read: {' '.join(problems)}", _SWEEP_HINT)
    return SearchSpace(dimensions, (f"--sweep={text!r}",))


def space_of_tuning_args(arguments: Mapping[str, Any]) -> SearchSpace:
    """Returns the space that a container's ``get_parameter_tuning_args`` describes.

    :param arguments: In the form that hi-ml documents: ``parameter_sampling`` maps names to distributions of
        ``azure.ai.ml.sweep``; the other keys are arguments of ``Command.sweep``. The mapping is not changed.
    :raises PlanError: With everything that is wrong with it.
    """
    source = "get_parameter_tuning_args"
    space = _read_block(arguments, source=source, parameters_key=TUNING_PARAMETERS, keys=TUNING_KEYS)
    defaults: dict[str, Any] = {} if "sampling_algorithm" in arguments else {"sampling": Sampling.RANDOM}
    if space.primary_metric is None:
        defaults["primary_metric"] = DEFAULT_METRIC_OF_TUNING
    return replace(space, sources=("--hyperdrive",), **defaults)


def space_of_block(block: Mapping[str, Any]) -> SearchSpace:
    """Returns the space that the ``fan_out`` block of a YAML file describes.

    :raises PlanError: With everything that is wrong with it.
    """
    return _read_block(block, source="fan_out", parameters_key=FAN_OUT_PARAMETERS, keys=FAN_OUT_KEYS)


_SWEEP_HINT = (
    "Write for example --sweep 'l_rate=1e-4,1e-3 random_seed=0..4' or --sweep 'l_rate=loguniform(1e-5,1e-1)' "
    "--sampling=random --max_trials=10."
)


def _spaces(options: FanOutOptions) -> Iterator[SearchSpace]:
    """Yields the space of each option that asks for one, the search last."""
    searches: list[tuple[str, Callable[[], SearchSpace]]] = []
    if options.tuning_args is not None:
        searches.append(("--hyperdrive", lambda: space_of_tuning_args(options.tuning_args or {})))
    if options.sweep.strip():
        searches.append(("--sweep", lambda: space_of_sweep(options.sweep)))
    if options.fan_out is not None:
        searches.append(("the fan_out block of the YAML file", lambda: space_of_block(options.fan_out or {})))
    if len(searches) > 1:
        names = " and ".join(name for name, _ in searches)
        raise PlanError(f"{names} each define a search.", "Keep one of them.")
    if options.different_seeds > 0:
        yield space_of_seeds(options.different_seeds)
    if options.crossval_count > 1 and options.crossval_index is None:
        yield space_of_folds(options.crossval_count)
    for _, read in searches:
        yield read()


def _read_block(block: Mapping[str, Any], *, source: str, parameters_key: str, keys: Mapping[str, str]) -> SearchSpace:
    if not isinstance(block, Mapping):
        raise PlanError(
            f"{source} has to be a mapping, not {block!r}.", f"It takes {join_choices([parameters_key, *keys])}."
        )
    problems = []
    for name in block:
        if name not in keys and name != parameters_key:
            problems.append(f"There is no {name!r}. {did_you_mean(str(name), [parameters_key, *keys])}".strip())
    parameters = block.get(parameters_key)
    dimensions: tuple[tuple[str, Dimension], ...] = ()
    if isinstance(parameters, Mapping) and parameters:
        dimensions = _read_dimensions([(str(name), value) for name, value in parameters.items()], problems)
    else:
        problems.append(f"{parameters_key!r} has to name the parameters that vary, and is {parameters!r}.")
    given = {keys[name]: value for name, value in block.items() if name in keys and value is not None}
    settings: dict[str, Any] = {}
    try:
        settings = _read_settings(given, source=source)
    except PlanError as error:
        problems.append(str(error))
    if problems:
        raise PlanError(
            f"{source} cannot be read: {' '.join(problems)}", f"It takes {', '.join([parameters_key, *keys])}."
        )
    return SearchSpace(dimensions, (source,), **settings)


def _read_dimensions(named: list[tuple[str, Any]], problems: list[str]) -> tuple[tuple[str, Dimension], ...]:
    """Returns the dimensions, and adds what is wrong with the others to the problems."""
    dimensions = []
    for name, value in named:
        try:
            dimensions.append((name.replace("-", "_"), dimension_from_value(value)))
        except DimensionError as error:
            problems.append(f"{name} {str(error).rstrip('.')}.")
    return tuple(dimensions)


def _read_settings(settings: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Returns the fields of a search space for settings by field name.

    :raises PlanError: With everything that is wrong with them.
    """
    readers: dict[str, Callable[[Any], Any]] = {
        "sampling": lambda value: _enum_value(Sampling, getattr(value, "type", value)),
        "goal": lambda value: _enum_value(Goal, value),
        "early_termination": policy_from_value,
        "max_trials": _whole_number,
        "max_concurrent": _whole_number,
        "sampling_seed": _whole_number,
        "primary_metric": str,
        "timeout_seconds": _seconds,
        "trial_timeout_seconds": _seconds,
    }
    fields: dict[str, Any] = {}
    problems = []
    for name, value in settings.items():
        try:
            fields[name] = readers[name](value)
        except PlanError as error:
            problems.append(f"{name}: {error}")
        except ValueError as error:
            problems.append(f"{name}={value!r} {error}.")
    if problems:
        raise PlanError(f"The settings of the search in {source} cannot be read: {' '.join(problems)}")
    return fields


def _enum_value(enum: type[Sampling] | type[Goal], value: Any) -> Sampling | Goal:
    text = str(getattr(value, "value", value)).lower()
    choices = [member.value for member in enum]
    if text not in choices:
        hint = did_you_mean(text, choices)
        raise ValueError(f"is not one of {join_choices(choices)}. {hint}".rstrip(". "))
    return enum(text)


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is no whole number")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return parse_duration(str(value))


def _flags(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"--{FLAGS_OF_SETTINGS.get(name, name)}={getattr(value, 'value', value)}" for name, value in settings.items()
    )
