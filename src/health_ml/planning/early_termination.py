"""When a trial is stopped before its end because others do better: AzureML's policies, as values and pure functions.

Each time a trial logs the primary metric counts as one interval. A policy looks at a trial at each multiple of
``evaluation_interval`` that is not below ``delay_evaluation``. It compares the trial at interval N with what the
others had reported up to interval N, so that a young trial is not held against old ones. Source: the reference of
``azureml.train.hyperdrive`` (BanditPolicy, MedianStoppingPolicy, TruncationSelectionPolicy), whose policies
``azure.ai.ml.sweep`` took over.
"""

from __future__ import annotations

import math
import re
import statistics
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any, ClassVar, TypeVar

from health_ml.errors import PlanError, did_you_mean, join_choices

_POLICY_TEXT = re.compile(r"\s*([\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_TrialT = TypeVar("_TrialT", bound=Hashable)


class Goal(Enum):
    """Whether a smaller or a larger primary metric is better."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"

    def best(self, values: Sequence[float]) -> float:
        """Returns the best of the values; one that is not a number is worse than any other."""
        numbers = [value for value in values if not math.isnan(value)]
        if not numbers:
            return self.worst
        return min(numbers) if self is Goal.MINIMIZE else max(numbers)

    @property
    def worst(self) -> float:
        """The value that no other is worse than."""
        return math.inf if self is Goal.MINIMIZE else -math.inf

    def is_worse(self, value: float, other: float) -> bool:
        """True if the first value is worse than the second."""
        return value > other if self is Goal.MINIMIZE else value < other


@dataclass(frozen=True)
class EarlyTerminationPolicy(ABC):
    """When a trial is stopped early."""

    evaluation_interval: int = 1
    delay_evaluation: int = 0

    kind: ClassVar[str]

    def reason(self, value: float, others: Sequence[Sequence[float]], goal: Goal) -> str:
        """Returns why a trial has to stop, or an empty text.

        :param value: The best that the trial reported so far.
        :param others: What each trial that came as far reported up to this interval, the trial itself included.
        :param goal: What is better.
        """
        return self._reason(value, others, goal)

    def problems(self) -> list[str]:
        """Returns what is wrong with the policy, as sentences."""
        return self._problems()

    @abstractmethod
    def _reason(self, value: float, others: Sequence[Sequence[float]], goal: Goal) -> str: ...

    def _problems(self) -> list[str]:
        problems = []
        if self.evaluation_interval < 1:
            problems.append(f"evaluation_interval={self.evaluation_interval} has to be 1 or more.")
        if self.delay_evaluation < 0:
            problems.append(f"delay_evaluation={self.delay_evaluation} has to be 0 or more.")
        return problems

    def is_due(self, interval: int) -> bool:
        """True if the policy looks at a trial that has reported so many times."""
        return interval > 0 and interval % self.evaluation_interval == 0 and interval >= self.delay_evaluation

    def __str__(self) -> str:
        settings = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.kind}({', '.join(settings)})" if settings else self.kind

    def to_json(self) -> dict[str, Any]:
        """Returns the policy as values that JSON knows."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class BanditPolicy(EarlyTerminationPolicy):
    """Stops a trial whose best result is further from the overall best than the slack allows.

    :param slack_factor: Allowed distance as a ratio: when maximising, a trial needs ``best / (1 + slack_factor)``.
        When minimising, it may have ``best * (1 + slack_factor)``. For a best result below zero the two are swapped,
        because the slack has to widen what is allowed.
    :param slack_amount: Allowed distance as an amount.
    """

    slack_factor: float | None = None
    slack_amount: float | None = None

    kind: ClassVar[str] = "bandit"

    def _problems(self) -> list[str]:
        problems = super()._problems()
        given = [name for name in ("slack_factor", "slack_amount") if getattr(self, name) is not None]
        if len(given) != 1:
            problems.append("The bandit policy needs either slack_factor or slack_amount.")
        problems += [f"{name}={getattr(self, name)} has to be 0 or more." for name in given if getattr(self, name) < 0]
        return problems

    def _reason(self, value: float, others: Sequence[Sequence[float]], goal: Goal) -> str:
        best = goal.best([goal.best(other) for other in others])
        limit = self._limit(best, goal)
        return f"{value:g} is beyond {limit:g}, the slack on the best, {best:g}" if goal.is_worse(value, limit) else ""

    def _limit(self, best: float, goal: Goal) -> float:
        if self.slack_amount is not None:
            return best + self.slack_amount if goal is Goal.MINIMIZE else best - self.slack_amount
        factor = 1 + (self.slack_factor or 0.0)
        return best * factor if (goal is Goal.MINIMIZE) == (best >= 0) else best / factor


@dataclass(frozen=True)
class MedianStoppingPolicy(EarlyTerminationPolicy):
    """Stops a trial whose best result is worse than the median of all trials' averages up to the same interval."""

    kind: ClassVar[str] = "median_stopping"

    def _reason(self, value: float, others: Sequence[Sequence[float]], goal: Goal) -> str:
        median = statistics.median(_mean(other, goal) for other in others)
        return f"{value:g} is worse than the median {median:g}" if goal.is_worse(value, median) else ""


@dataclass(frozen=True)
class TruncationSelectionPolicy(EarlyTerminationPolicy):
    """Stops a trial that is among the given percentage of the worst trials at the same interval.

    Of trials with equal results none is stopped unless all of them are among the worst.
    """

    truncation_percentage: int = 0

    kind: ClassVar[str] = "truncation_selection"

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not 1 <= self.truncation_percentage <= 99:
            problems.append(f"truncation_percentage={self.truncation_percentage} has to be from 1 to 99.")
        return problems

    def _reason(self, value: float, others: Sequence[Sequence[float]], goal: Goal) -> str:
        results = [goal.best(other) for other in others]
        to_stop = len(results) * self.truncation_percentage // 100
        not_better = sum(not goal.is_worse(value, result) for result in results)
        if not_better > to_stop:
            return ""
        return f"{value:g} is among the worst {self.truncation_percentage} % of {len(results)} trials"


POLICIES: dict[str, type[EarlyTerminationPolicy]] = {
    cls.kind: cls for cls in (BanditPolicy, MedianStoppingPolicy, TruncationSelectionPolicy)
}
_DEFAULT_OF_SDK = {"slack_factor": 0, "slack_amount": 0, "evaluation_interval": 0}
"""The SDK has these for "not given"."""


def decide_stop(
    policy: EarlyTerminationPolicy, trial: _TrialT, *, histories: Mapping[_TrialT, Sequence[float]], goal: Goal
) -> str:
    """Returns why a trial that has just reported has to stop now, or an empty text if it goes on.

    :param policy: The policy.
    :param trial: The trial.
    :param histories: What every trial, also the finished and stopped ones, has reported of the primary metric.
    :param goal: What is better.
    """
    interval = len(histories[trial])
    if not policy.is_due(interval):
        return ""
    comparable = [history[:interval] for history in histories.values() if len(history) >= interval]
    reason = policy.reason(goal.best(histories[trial]), comparable, goal)
    return f"Stopped early by the {policy.kind} policy at interval {interval}: {reason}." if reason else ""


def policy_from_value(value: Any) -> EarlyTerminationPolicy | None:
    """Returns the policy that a mapping, its name, or a policy object of the AzureML SDK describes.

    :param value: For example ``{"type": "bandit", "slack_factor": 0.1}``; None and "" mean no policy.
    :raises PlanError: With everything that is wrong with it.
    """
    if value is None or (isinstance(value, str) and not value):  # the SDK's policies cannot be compared with a text
        return None
    if isinstance(value, EarlyTerminationPolicy):
        return _checked(value)
    if isinstance(value, str):
        return _from_fields(value, {})
    if isinstance(value, Mapping):
        given = {str(name): item for name, item in value.items()}
        kind = given.pop("type", None) or given.pop("policy", None) or given.pop("kind", None)
        return _from_fields(str(kind or ""), given)
    names = {name for cls in POLICIES.values() for name in _names(cls)}
    given = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return _from_fields(
        str(getattr(value, "type", value)),
        {name: item for name, item in given.items() if name not in _DEFAULT_OF_SDK or item not in (0, None)},
    )


def policy_from_text(text: str) -> EarlyTerminationPolicy | None:
    """Returns the policy in a text such as ``bandit(slack_factor=0.1, evaluation_interval=2)`` or ``median_stopping``.

    :raises PlanError: With everything that is wrong with it.
    """
    match = _POLICY_TEXT.fullmatch(text)
    if match is None:
        raise PlanError(
            f"The early termination policy {text!r} cannot be read.",
            "Write its name, and its settings in parentheses: bandit(slack_factor=0.1, evaluation_interval=2).",
        )
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in (match.group(2) or "").split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            given[name] = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError as error:
            shown = f"{part!r} is no name=number" if not equals else f"{name}={value} is no number"
            raise PlanError(f"The early termination policy {text!r} cannot be read: {shown}.") from error
    return _from_fields(match.group(1), given) if match.group(1) else None


def _names(cls: type[EarlyTerminationPolicy]) -> list[str]:
    return [field.name for field in fields(cls)]


def _from_fields(kind: str, given: Mapping[str, Any]) -> EarlyTerminationPolicy:
    cls = POLICIES.get(kind.lower().replace("-", "_"))
    if cls is None:
        raise PlanError(
            f"There is no early termination policy {kind!r}.",
            f"{did_you_mean(kind, POLICIES)} Choose {join_choices(list(POLICIES))}.".strip(),
        )
    unknown = [name for name in given if name not in _names(cls)]
    no_numbers = [
        name
        for name, value in given.items()
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None)))
    ]
    if unknown or no_numbers:
        raise PlanError(
            f"The {cls.kind} policy cannot be read: "
            + "; ".join([*(f"{name} is unknown" for name in unknown), *(f"{name} is no number" for name in no_numbers)])
            + ".",
            f"It takes {', '.join(_names(cls))}.",
        )
    return _checked(cls(**given))


def _checked(policy: EarlyTerminationPolicy) -> EarlyTerminationPolicy:
    problems = policy.problems()
    if problems:
        raise PlanError(" ".join(problems), "See --help for what the policies take.")
    return policy


def _mean(values: Sequence[float], goal: Goal) -> float:
    return goal.worst if any(math.isnan(value) for value in values) else statistics.fmean(values)
