"""What a fan-out varies, whatever asked for it: seeds, folds, a grid, a random or a Bayesian search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from health_ml.errors import PlanError, did_you_mean
from health_ml.planning.dimensions import Dimension, ParameterValue, dimension_from_json
from health_ml.planning.early_termination import EarlyTerminationPolicy, Goal, policy_from_value


class Sampling(Enum):
    """How the values of a trial are chosen."""

    GRID = "grid"
    RANDOM = "random"
    BAYESIAN = "bayesian"


@dataclass(frozen=True)
class TrialParameters:
    """The values of one trial.

    :param index: Number of the trial in its fan-out, starting at 0.
    :param values: Name and value of each parameter, in the order of the search space.
    """

    index: int
    values: tuple[tuple[str, ParameterValue], ...]

    def arguments(self) -> tuple[str, ...]:
        """Returns the flags that give a run these values, one ``--name=value`` each."""
        return tuple(f"--{name}={value}" for name, value in self.values)

    def to_json(self) -> dict[str, Any]:
        """Returns the trial as values that JSON knows."""
        return {"index": self.index, "values": dict(self.values)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialParameters:
        """Returns the trial that :meth:`to_json` described."""
        return cls(int(values["index"]), tuple(values["values"].items()))


@dataclass(frozen=True)
class SearchSpace:
    """What a fan-out varies and how.

    :param dimensions: Name of each varied parameter, and the values it may take.
    :param sources: The options that asked for it, for messages, for example ``--different_seeds=4``.
    :param sampling: How values are chosen.
    :param sampling_seed: Seed of the sampler.
    :param max_trials: Largest number of trials; None: the whole grid.
    :param max_concurrent: Largest number of trials at the same time; None: as many as there is room for.
    :param primary_metric: The metric that the search optimises, or None.
    :param goal: Whether less or more of it is better.
    :param early_termination: When a trial is stopped early, or None.
    :param timeout_seconds: Time limit of the whole search, or None.
    :param trial_timeout_seconds: Time limit of one trial, or None.
    """

    dimensions: tuple[tuple[str, Dimension], ...]
    sources: tuple[str, ...] = ()
    sampling: Sampling = Sampling.GRID
    sampling_seed: int = 0
    max_trials: int | None = None
    max_concurrent: int | None = None
    primary_metric: str | None = None
    goal: Goal = Goal.MINIMIZE
    early_termination: EarlyTerminationPolicy | None = None
    timeout_seconds: float | None = None
    trial_timeout_seconds: float | None = None

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the varied parameters."""
        return tuple(name for name, _ in self.dimensions)

    @property
    def grid_size(self) -> int | None:
        """Number of combinations, or None if there is no end to them."""
        grids = [dimension.grid() for _, dimension in self.dimensions]
        return None if None in grids else math.prod(len(grid) for grid in grids if grid is not None)

    @property
    def trial_count(self) -> int:
        """Number of trials, if none fails and nothing ends the search early."""
        sizes = [size for size in (self.grid_size, self.max_trials) if size is not None]
        return min(sizes)

    def grid_trials(self) -> Iterator[TrialParameters]:
        """Yields the trials of a grid in order: the last parameter changes fastest."""
        grids = [dimension.grid() or () for _, dimension in self.dimensions]
        for index, values in enumerate(itertools.islice(itertools.product(*grids), self.max_trials)):
            yield TrialParameters(index, tuple(zip(self.parameter_names, values, strict=True)))

    def check(self, known_parameters: Collection[str] | None = None) -> None:
        """Raises an error if the search cannot be run.

        :param known_parameters: Names of the parameters that a run can be given; None if they are not known.
        :raises PlanError: With everything that is wrong.
        """
        problems = self.problems(known_parameters)
        if problems:
            where = f" ({', '.join(self.sources)})" if self.sources else ""
            raise PlanError(
                f"The search space{where} cannot be used: {' '.join(problems)}",
                "See --help for --sweep and its options.",
            )

    def problems(self, known_parameters: Collection[str] | None = None) -> list[str]:
        """Returns what is wrong with the search space, as sentences."""
        return [
            *self._dimension_problems(known_parameters),
            *self._sampling_problems(),
            *(self.early_termination.problems() if self.early_termination else []),
        ]

    def _dimension_problems(self, known_parameters: Collection[str] | None) -> list[str]:
        problems = [] if self.dimensions else ["It varies no parameter."]
        names = self.parameter_names
        problems += [f"{name!r} is varied twice." for name in dict.fromkeys(names) if names.count(name) > 1]
        for name, dimension in self.dimensions:
            problems += [f"{name} {problem}." for problem in dimension.problems()]
            if known_parameters is not None and name not in known_parameters:
                hint = did_you_mean(name, known_parameters)
                problems.append(f"There is no parameter {name!r}. {hint}".strip())
        return problems

    def _sampling_problems(self) -> list[str]:
        problems = []
        for name in ("max_trials", "max_concurrent", "timeout_seconds", "trial_timeout_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                problems.append(f"{name}={value} has to be above 0.")
        if any(dimension.problems() for _, dimension in self.dimensions):
            return problems
        endless = [name for name, dimension in self.dimensions if dimension.grid() is None]
        if self.sampling is Sampling.GRID and endless:
            problems.append(
                f"A grid needs lists of values, but {', '.join(endless)} may take any value of a range: "
                "list values, or use --sampling=random or --sampling=bayesian."
            )
        elif endless and self.max_trials is None:
            problems.append(f"{', '.join(endless)} may take any value of a range: say how often with --max_trials.")
        needs_metric = [f"--sampling={self.sampling.value}"] if self.sampling is Sampling.BAYESIAN else []
        needs_metric += [f"the {self.early_termination.kind} policy"] if self.early_termination else []
        if needs_metric and not self.primary_metric:
            problems.append(f"--primary_metric is missing, which {' and '.join(needs_metric)} cannot do without.")
        return problems

    def to_json(self) -> dict[str, Any]:
        """Returns the search space as values that JSON knows; :meth:`from_json` gives an equal one back."""
        return {
            "dimensions": [[name, dimension.to_json()] for name, dimension in self.dimensions],
            "sources": list(self.sources),
            "sampling": self.sampling.value,
            "sampling_seed": self.sampling_seed,
            "max_trials": self.max_trials,
            "max_concurrent": self.max_concurrent,
            "primary_metric": self.primary_metric,
            "goal": self.goal.value,
            "early_termination": self.early_termination.to_json() if self.early_termination else None,
            "timeout_seconds": self.timeout_seconds,
            "trial_timeout_seconds": self.trial_timeout_seconds,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SearchSpace:
        """Returns the search space that :meth:`to_json` described.

        :raises PlanError: If the values describe none.
        """
        try:
            fields = dict(values)
            return cls(
                **{
                    **fields,
                    "dimensions": tuple((name, dimension_from_json(item)) for name, item in fields["dimensions"]),
                    "sources": tuple(fields["sources"]),
                    "sampling": Sampling(fields["sampling"]),
                    "goal": Goal(fields["goal"]),
                    "early_termination": policy_from_value(fields["early_termination"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"A search space cannot be read: {error!r}.", "It is damaged or of another version."
            ) from error


def product(spaces: Sequence[SearchSpace]) -> SearchSpace:
    """Returns the space of all combinations of the given ones, for example seeds times folds.

    The settings of the search come from the one space that has any; only grids can be multiplied.

    :raises PlanError: With every reason why they cannot be combined.
    """
    if len(spaces) == 1:
        return spaces[0]
    sources = tuple(source for space in spaces for source in space.sources)
    problems = []
    sampled = [space for space in spaces if space.sampling is not Sampling.GRID]
    if sampled:
        names = ", ".join(source for space in sampled for source in space.sources)
        problems.append(
            f"{names or 'A search'} chooses its trials by --sampling={sampled[0].sampling.value}, which cannot be "
            "multiplied with others: vary everything in one --sweep, for example with random_seed=0..4, or use "
            "--sampling=grid."
        )
    names_of = [(name, space) for space in spaces for name in space.parameter_names]
    for name in dict.fromkeys(name for name, _ in names_of):
        owners = [", ".join(space.sources) for other, space in names_of if other == name]
        if len(owners) > 1:
            problems.append(f"Both {' and '.join(owners)} vary {name}: leave one of them out.")
    if problems:
        raise PlanError(" ".join(problems))
    settings = next((space for space in spaces if _has_settings(space)), spaces[0])
    dimensions = tuple(dimension for space in spaces for dimension in space.dimensions)
    return replace(settings, dimensions=dimensions, sources=sources)


def _has_settings(space: SearchSpace) -> bool:
    return replace(space, dimensions=(), sources=()) != SearchSpace(())
