"""Chooses the values of the next trial: a grid in order, at random, or from what earlier trials achieved."""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple, Protocol

from health_ml.planning.dimensions import DrawFrom, ParameterValue
from health_ml.planning.early_termination import Goal
from health_ml.planning.search_space import Sampling, SearchSpace, TrialParameters

ATTEMPTS_FOR_NEW_VALUES = 20
"""How often to draw again if a trial with the same values exists, before choosing among those that do not."""
MAX_SIZE_TO_LIST = 100_000
MOST_RANDOM_TRIALS = 10
"""How many trials of a Bayesian search are drawn at random before it learns; a quarter of a small search."""


class Outcome(NamedTuple):
    """What became of a trial.

    :param trial: The trial.
    :param value: Best value of the primary metric, or None if it failed or never reported.
    """

    trial: TrialParameters
    value: float | None


class Sampler(Protocol):
    """Chooses trials. What it answers depends on the search space, its seed, and what it was told, on nothing else."""

    @abstractmethod
    def ask(self) -> TrialParameters | None:
        """Returns the next trial, or None if there are no more."""

    @abstractmethod
    def tell(self, trial: TrialParameters, value: float | None) -> None:
        """Takes the result of a trial into account; None if it failed."""


def create_sampler(
    space: SearchSpace, *, started: Sequence[TrialParameters] = (), outcomes: Sequence[Outcome] = ()
) -> Sampler:
    """Returns the sampler of a search space that has been checked.

    :param space: The search space.
    :param started: The trials that were chosen already, in order, when a fan-out is taken up again.
    :param outcomes: What became of those of them that ended.
    """
    if space.sampling is Sampling.GRID:
        return GridSampler(space, started=started)
    return OptunaSampler(space, started=started, outcomes=outcomes)


class GridSampler:
    """All combinations in order."""

    def __init__(self, space: SearchSpace, *, started: Sequence[TrialParameters] = ()) -> None:
        done = {trial.index for trial in started}
        self._trials = (trial for trial in space.grid_trials() if trial.index not in done)

    def ask(self) -> TrialParameters | None:
        """Returns the next combination, or None after the last."""
        return next(self._trials, None)

    def tell(self, trial: TrialParameters, value: float | None) -> None:
        """Does nothing: a grid does not depend on results."""


class OptunaSampler:
    """Random and Bayesian search (tree-structured Parzen estimator) by Optuna.

    Each trial is drawn with a seed of its own that is made of the seed of the space and the number of the trial, so
    that a fan-out that is taken up again goes on as if it had never stopped. Values are not tried twice as long as
    there are others.
    """

    def __init__(
        self, space: SearchSpace, *, started: Sequence[TrialParameters] = (), outcomes: Sequence[Outcome] = ()
    ) -> None:
        import optuna  # half a second, and only searches need it

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._space = space
        directions = optuna.study.StudyDirection
        direction = directions.MINIMIZE if space.goal is Goal.MINIMIZE else directions.MAXIMIZE
        # The search learns nothing from its first trials; of a small one they must not be all.
        self._random_trials = min(MOST_RANDOM_TRIALS, max(2, space.trial_count // 4))
        self._study = optuna.create_study(direction=direction, sampler=self._sampler(0))
        self._distributions = {name: _distribution(dimension.draw_from()) for name, dimension in space.dimensions}
        self._running: dict[int, Any] = {}
        self._seen: set[tuple[tuple[str, ParameterValue], ...]] = set()
        self._next_index = 0
        self._replay(started, {outcome.trial.index: outcome.value for outcome in outcomes})

    def ask(self) -> TrialParameters | None:
        """Returns the next trial, or None if there are as many as asked for or all combinations were tried."""
        if self._next_index >= self._space.trial_count:
            return None
        self._study.sampler = self._sampler(self._next_index)
        for _ in range(ATTEMPTS_FOR_NEW_VALUES):
            drawn = self._study.ask(self._distributions)
            trial = self._trial(drawn.params)
            if trial.values not in self._seen:
                break
            self._study.tell(drawn, state=self._optuna.trial.TrialState.FAIL)
        else:
            drawn, trial = self._unseen() or (drawn, trial)
        self._running[trial.index] = drawn
        self._seen.add(trial.values)
        self._next_index += 1
        return trial

    def tell(self, trial: TrialParameters, value: float | None) -> None:
        """Takes the result of a trial into account; None or a value that is no number if it failed."""
        drawn = self._running.pop(trial.index)
        if value is None or math.isnan(value):
            self._study.tell(drawn, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(drawn, value)

    def _replay(self, started: Sequence[TrialParameters], values: dict[int, float | None]) -> None:
        """Takes over the trials of a fan-out that is taken up again, in the order in which they were started."""
        for trial in started:
            self._study.enqueue_trial(self._drawn_for(trial))
            self._running[trial.index] = self._study.ask(self._distributions)
            self._seen.add(trial.values)
            self._next_index = trial.index + 1
            if trial.index in values:
                self.tell(trial, values[trial.index])

    def _drawn_for(self, trial: TrialParameters) -> dict[str, ParameterValue]:
        given = dict(trial.values)
        return {name: dimension.drawn_for(given[name]) for name, dimension in self._space.dimensions}

    def _sampler(self, index: int) -> Any:
        seed = int.from_bytes(hashlib.sha256(f"{self._space.sampling_seed}:{index}".encode()).digest()[:4], "big")
        samplers = self._optuna.samplers
        if self._space.sampling is Sampling.RANDOM:
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # Keeps trials that run at the same time apart; marked experimental since Optuna 2.8.
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=self._random_trials)

    def _trial(self, drawn: dict[str, ParameterValue]) -> TrialParameters:
        values = tuple((name, dimension.value_of(drawn[name])) for name, dimension in self._space.dimensions)
        return TrialParameters(self._next_index, values)

    def _unseen(self) -> tuple[Any, TrialParameters] | None:
        """Returns one of the combinations that have not been tried, or None if there are too many to list."""
        size = self._space.grid_size
        if size is None or size > MAX_SIZE_TO_LIST:
            return None
        left = [trial for trial in _whole_grid(self._space) if trial.values not in self._seen]
        chosen = Random(f"{self._space.sampling_seed}:{self._next_index}").choice(left)  # noqa: S311 (no secret)
        self._study.enqueue_trial(self._drawn_for(chosen))
        return self._study.ask(self._distributions), TrialParameters(self._next_index, chosen.values)


def _distribution(draw: DrawFrom) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if draw.categories:
        return CategoricalDistribution(draw.categories)
    if draw.is_integer:
        return IntDistribution(int(draw.low), int(draw.high))
    return FloatDistribution(draw.low, draw.high, log=draw.is_log)


def _whole_grid(space: SearchSpace) -> Sequence[TrialParameters]:
    return list(SearchSpace(space.dimensions).grid_trials())
