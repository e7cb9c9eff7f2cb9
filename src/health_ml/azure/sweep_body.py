"""The part of a sweep job that says what varies and how, as the body of a request to AzureML has it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from health_ml.errors import PlanError, join_choices
from health_ml.planning.dimensions import (
    Dimension,
    LogNormal,
    LogUniform,
    Normal,
    ParameterValue,
    QLogNormal,
    QLogUniform,
    QNormal,
    QUniform,
    Uniform,
)
from health_ml.planning.early_termination import (
    BanditPolicy,
    EarlyTerminationPolicy,
    TruncationSelectionPolicy,
)
from health_ml.planning.fan_out import DEFAULT_METRIC_OF_TUNING
from health_ml.planning.search_space import Sampling, SearchSpace

MAX_TRIALS = 1000
"""The most trials that AzureML allows in one sweep job."""
MAX_CHOICES = 1000
SHORTEST_LIMIT = 60
"""Seconds. The service takes a shorter limit for sixty days."""
SEARCH_PROPERTY = "himl.search"
"""Property of a sweep job: what those have to know who read its results, as JSON."""
_BAYESIAN = ("choice", "uniform", "quniform")


def search_space_body(space: SearchSpace, names: Mapping[str, str]) -> dict[str, Any]:
    """Returns what varies, in AzureML's expressions.

    :param names: The name in AzureML of each parameter.
    :raises PlanError: With every dimension that AzureML cannot sample.
    """
    found, problems = {}, []
    for name, dimension in space.dimensions:
        kind, *arguments = _expression(dimension, space.sampling)
        found[names[name]] = [kind, arguments]
        if kind == "":
            problems.append(f"{name} has more than {MAX_CHOICES} whole numbers")
        elif space.sampling is Sampling.BAYESIAN and kind not in _BAYESIAN:
            problems.append(f"{name} is {dimension.kind}")
    if problems:
        allowed = join_choices(_BAYESIAN) if space.sampling is Sampling.BAYESIAN else "a list or a distribution"
        raise PlanError(
            f"AzureML cannot search like this with --sampling={space.sampling.value}: {'; '.join(problems)}.",
            f"Use {allowed}.",
        )
    return found


def sampling_body(space: SearchSpace) -> dict[str, Any]:
    """Returns how AzureML chooses the values of a trial."""
    if space.sampling is Sampling.RANDOM:
        return {"samplingAlgorithmType": "Random", "seed": space.sampling_seed}
    return {"samplingAlgorithmType": space.sampling.value.capitalize()}


def objective_body(space: SearchSpace) -> dict[str, Any]:
    """Returns what a search optimises. AzureML wants a metric even where nothing depends on it."""
    return {"goal": space.goal.value, "primaryMetric": space.primary_metric or DEFAULT_METRIC_OF_TUNING}


def search_property(space: SearchSpace, names: Mapping[str, str], *, longest: int) -> str:
    """Returns the text of a property that says which metric ranks the trials, if any, and what AzureML renamed.

    :param names: The name in AzureML of each parameter.
    :param longest: Length of a property. The names are left out if there are too many: those of AzureML are readable.
    """
    found: dict[str, Any] = {"primary_metric": space.primary_metric, "goal": space.goal.value}
    renamed = {encoded: name for name, encoded in names.items() if encoded != name}
    complete = json.dumps({**found, "names": renamed})
    return complete if len(complete) <= longest else json.dumps(found)


def early_termination_body(policy: EarlyTerminationPolicy, sampling: Sampling) -> dict[str, Any]:
    """Returns when a trial is stopped before its end.

    :raises PlanError: If AzureML does not end trials early with this sampling.
    """
    if sampling is Sampling.BAYESIAN:
        raise PlanError(
            "AzureML has no early termination for --sampling=bayesian.",
            "Leave out --early_termination, or use --sampling=random.",
        )
    body: dict[str, Any] = {
        "policyType": "".join(word.capitalize() for word in policy.kind.split("_")),
        "evaluationInterval": policy.evaluation_interval,
        "delayEvaluation": policy.delay_evaluation,
    }
    if isinstance(policy, BanditPolicy):
        body |= {"slackAmount": policy.slack_amount or 0.0, "slackFactor": policy.slack_factor or 0.0}
    if isinstance(policy, TruncationSelectionPolicy):
        body["truncationPercentage"] = policy.truncation_percentage
    return body


def limits_body(space: SearchSpace, max_run_seconds: float | None) -> dict[str, Any]:
    """Returns the limits of a sweep job.

    :param max_run_seconds: Time limit of the job, which holds besides that of the search.
    :raises PlanError: If there are too many trials, or a limit is too short.
    """
    if space.trial_count > MAX_TRIALS:
        raise PlanError(
            f"{space.trial_count} trials are more than the {MAX_TRIALS} that AzureML allows in one job.",
            f"Set --max_trials={MAX_TRIALS}; a whole grid, without --max_trials, is split into several jobs.",
        )
    limits = [limit for limit in (space.timeout_seconds, max_run_seconds) if limit is not None]
    body: dict[str, Any] = {"jobLimitsType": "Sweep", "maxTotalTrials": space.trial_count}
    if space.max_concurrent is not None:
        body["maxConcurrentTrials"] = space.max_concurrent
    if limits:
        body["timeout"] = iso_duration(min(limits))
    if space.trial_timeout_seconds is not None:
        body["trialTimeout"] = iso_duration(space.trial_timeout_seconds)
    return body


def iso_duration(seconds: float) -> str:
    """Returns a duration as AzureML has it, in whole seconds: ``PT1H30M``.

    :raises PlanError: If it is so short that the service misunderstands it.
    """
    if seconds < SHORTEST_LIMIT:
        raise PlanError(
            f"A time limit of {seconds:g} s is too short for AzureML, which knows none below {SHORTEST_LIMIT} s.",
            "Give at least 1m.",
        )
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    time = "".join(f"{number}{unit}" for number, unit in ((hour, "H"), (minute, "M"), (second, "S")) if number)
    return "P" + (f"{days}D" if days else "") + (f"T{time}" if time else "")


def seconds_of(duration: str) -> int:
    """Returns the seconds in a duration that :func:`iso_duration` wrote."""
    date, _, time = duration.removeprefix("P").partition("T")
    total, number = 0, ""
    units = {"D": 86_400, "H": 3_600, "M": 60, "S": 1}
    for character in date + time:
        if character.isdigit():
            number += character
        else:
            total, number = total + int(number) * units[character], ""
    return total


def _expression(dimension: Dimension, sampling: Sampling) -> list[Any]:
    """Returns a dimension as kind and arguments; the kind is "" if AzureML has none for it.

    A finite list stays one, also for ranges with steps: then AzureML hands over the very values that a local search
    uses, written in the same way. Only a Bayesian search has to know that they are numbers in order.
    """
    values = dimension.grid()
    is_ordered = sampling is Sampling.BAYESIAN and isinstance(dimension, QUniform)
    if values is not None and len(values) <= MAX_CHOICES and not is_ordered:
        return ["choice", [_plain(value) for value in values]]
    match dimension:
        case QUniform(low, high, q):
            return ["quniform", low, high, q]
        case QLogUniform(low, high, q):
            return ["qloguniform", math.log(low), math.log(high), q]
        case LogUniform(low, high):
            return ["loguniform", math.log(low), math.log(high)]
        case Uniform(low, high):
            return ["uniform", low, high]
        case QLogNormal(mu, sigma, q):
            return ["qlognormal", mu, sigma, q]
        case LogNormal(mu, sigma):
            return ["lognormal", mu, sigma]
        case QNormal(mu, sigma, q):
            return ["qnormal", mu, sigma, q]
        case Normal(mu, sigma):
            return ["normal", mu, sigma]
    return [""]


def _plain(value: ParameterValue) -> str | int | float:
    """Returns a value that AzureML writes into the command as a local search would: True as ``True``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return str(value)
