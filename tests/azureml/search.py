"""The trials of a sweep job: which values of the search space each of them gets."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

DEFAULT_TRIALS = 20


def trial_values(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the values of each trial, for the ``properties`` of a sweep job.

    Grid search goes through all combinations; random and Bayesian search draw, the latter without learning.
    """
    space: dict[str, list[Any]] = body["searchSpace"]
    limits = body.get("limits") or {}
    most = limits.get("maxTotalTrials") or DEFAULT_TRIALS
    if body["samplingAlgorithm"]["samplingAlgorithmType"] == "Grid":
        choices = [expression[1][0] for expression in space.values()]
        combinations = itertools.islice(itertools.product(*choices), most)
        return [dict(zip(space, values, strict=True)) for values in combinations]
    generator = random.Random(body["samplingAlgorithm"].get("seed") or 0)
    return [{name: _draw(expression, generator) for name, expression in space.items()} for _ in range(most)]


def _draw(expression: list[Any], generator: random.Random) -> Any:
    kind, arguments = expression[0], expression[1]
    if kind == "choice":
        return generator.choice(arguments[0])
    if kind == "randint":
        return generator.randrange(arguments[0])
    name = kind.removeprefix("q")
    is_logarithmic = name.startswith("log")
    low, high = arguments[0], arguments[1]
    if name.endswith("uniform"):
        value = generator.uniform(low, high)
    elif name.endswith("normal"):
        value = generator.gauss(low, high)
    else:
        raise ValueError(f"The stand-in knows no search space of kind {kind!r}.")
    value = math.exp(value) if is_logarithmic else value
    return round(value / arguments[2]) * arguments[2] if kind.startswith("q") else value
