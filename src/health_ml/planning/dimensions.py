"""What one parameter of a search space may be: a list of values, a range, or a distribution.

The names and the meaning are those of AzureML's search spaces, with one difference: the bounds of the logarithmic
distributions are values of the parameter (``loguniform(1e-5, 1e-1)``), not exponents. The translation from and to
AzureML's exponents is in :mod:`health_ml.planning.dimension_text`.

Samplers draw a number from :meth:`Dimension.draw_from` and hand it to :meth:`Dimension.value_of`: that way any sampler
that knows whole numbers, floats and categories can sample every distribution.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, ClassVar, NamedTuple

from health_ml.errors import PlanError, did_you_mean, join_choices

ParameterValue = str | int | float | bool | None

_TAIL = 1e-9
"""Normal distributions are sampled between these two quantiles, six standard deviations away from the mean."""


class DrawFrom(NamedTuple):
    """What a sampler draws.

    :param categories: Draw one of these, if not empty.
    :param low: Smallest number.
    :param high: Largest number, included.
    :param is_integer: Draw whole numbers.
    :param is_log: Draw uniformly in the logarithm.
    """

    categories: tuple[ParameterValue, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_integer: bool = False
    is_log: bool = False


@dataclass(frozen=True)
class Dimension(ABC):
    """The values that one parameter may take."""

    kind: ClassVar[str]
    form: ClassVar[str]

    def problems(self) -> list[str]:
        """Returns what is wrong with it, as parts of a sentence."""
        return self._problems()

    def draw_from(self) -> DrawFrom:
        """Returns what a sampler has to draw."""
        return self._draw_from()

    def grid(self) -> tuple[ParameterValue, ...] | None:
        """Returns all values in order, or None if there is no end to them."""
        return self._grid()

    def value_of(self, drawn: ParameterValue) -> ParameterValue:
        """Returns the value of the parameter for what a sampler drew."""
        return self._value_of(drawn)

    def drawn_for(self, value: ParameterValue) -> ParameterValue:
        """Returns what has to be drawn to get a value, or the nearest to it that can be drawn."""
        draw = self.draw_from()
        if draw.categories:
            return value
        drawn = min(max(self._drawn_for(_number(value)), draw.low), draw.high)
        return round(drawn) if draw.is_integer else drawn

    def _problems(self) -> list[str]:
        return []

    @abstractmethod
    def _draw_from(self) -> DrawFrom: ...

    def _grid(self) -> tuple[ParameterValue, ...] | None:
        return None

    def _value_of(self, drawn: ParameterValue) -> ParameterValue:
        return drawn

    def _drawn_for(self, value: float) -> float:
        return value

    def to_json(self) -> dict[str, Any]:
        """Returns the dimension as values that JSON knows."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Choice(Dimension):
    """One of the given values."""

    values: tuple[ParameterValue, ...]

    kind: ClassVar[str] = "choice"
    form: ClassVar[str] = "choice(value, value, …)"

    def _problems(self) -> list[str]:
        if not self.values:
            return ["has no values"]
        twice = [value for index, value in enumerate(self.values) if _is_in(value, self.values[:index])]
        broken = [value for value in self.values if isinstance(value, float) and not math.isfinite(value)]
        return [
            *([f"has {_listed(twice)} twice"] if twice else []),
            *([f"has {_listed(broken)}, which is no number"] if broken else []),
        ]

    def _draw_from(self) -> DrawFrom:
        return DrawFrom(categories=self.values)

    def _grid(self) -> tuple[ParameterValue, ...]:
        return self.values


@dataclass(frozen=True)
class IntRange(Dimension):
    """A whole number from ``low`` to ``high``, both included."""

    low: int
    high: int

    kind: ClassVar[str] = "int"
    form: ClassVar[str] = "int(lowest, highest)"

    def _problems(self) -> list[str]:
        return _order_problems(self.low, self.high, may_be_equal=True)

    def _draw_from(self) -> DrawFrom:
        return DrawFrom(low=self.low, high=self.high, is_integer=True)

    def _grid(self) -> tuple[ParameterValue, ...]:
        return tuple(range(self.low, self.high + 1))


@dataclass(frozen=True)
class Uniform(Dimension):
    """A number from ``low`` to ``high``."""

    low: float
    high: float

    kind: ClassVar[str] = "uniform"
    form: ClassVar[str] = "uniform(lowest, highest)"

    def _problems(self) -> list[str]:
        return _order_problems(self.low, self.high)

    def _draw_from(self) -> DrawFrom:
        return DrawFrom(low=self.low, high=self.high)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A number whose logarithm is uniform between those of ``low`` and ``high``."""

    kind: ClassVar[str] = "loguniform"
    form: ClassVar[str] = "loguniform(lowest, highest)"

    def _problems(self) -> list[str]:
        return _order_problems(self.low, self.high) + _positive_problems("lowest value", self.low)

    def _draw_from(self) -> DrawFrom:
        return DrawFrom(low=self.low, high=self.high, is_log=True)


@dataclass(frozen=True)
class QUniform(Dimension):
    """A multiple of ``q`` from ``low`` to ``high``."""

    low: float
    high: float
    q: float

    kind: ClassVar[str] = "quniform"
    form: ClassVar[str] = "quniform(lowest, highest, step)"

    def _problems(self) -> list[str]:
        problems = _order_problems(self.low, self.high) + _positive_problems("step", self.q)
        if not problems and not self._steps():
            problems.append(f"has no multiple of {self.q:g} from {self.low:g} to {self.high:g}")
        return problems

    def _draw_from(self) -> DrawFrom:
        return DrawFrom(low=self._steps()[0], high=self._steps()[-1], is_integer=True)

    def _grid(self) -> tuple[ParameterValue, ...]:
        return tuple(_multiple(step, self.q) for step in self._steps())

    def _value_of(self, drawn: ParameterValue) -> ParameterValue:
        return _multiple(_number(drawn), self.q)

    def _drawn_for(self, value: float) -> float:
        return value / self.q

    def _steps(self) -> range:
        # 0.3 / 0.1 is a little less than 3, which must not cost the last value.
        slack = 1e-9
        return range(math.ceil(self.low / self.q - slack), math.floor(self.high / self.q + slack) + 1)


@dataclass(frozen=True)
class _Rounded(Dimension):
    """Rounds the numbers of the class after it to multiples of ``q``."""

    q: float

    def _problems(self) -> list[str]:
        return super()._problems() + _positive_problems("step", self.q)

    def _value_of(self, drawn: ParameterValue) -> ParameterValue:
        return _multiple(round(_number(super()._value_of(drawn)) / self.q), self.q)


@dataclass(frozen=True)
class QLogUniform(_Rounded, LogUniform):
    """A loguniform number, rounded to a multiple of ``q``."""

    kind: ClassVar[str] = "qloguniform"
    form: ClassVar[str] = "qloguniform(lowest, highest, step)"


@dataclass(frozen=True)
class Normal(Dimension):
    """A number from a normal distribution."""

    mu: float
    sigma: float

    kind: ClassVar[str] = "normal"
    form: ClassVar[str] = "normal(mean, standard deviation)"

    def _problems(self) -> list[str]:
        finite = [] if math.isfinite(self.mu) else ["has a mean that is no number"]
        return finite + _positive_problems("standard deviation", self.sigma)

    def _draw_from(self) -> DrawFrom:
        return DrawFrom(low=_TAIL, high=1 - _TAIL)

    def _value_of(self, drawn: ParameterValue) -> ParameterValue:
        return NormalDist(self.mu, self.sigma).inv_cdf(_number(drawn))

    def _drawn_for(self, value: float) -> float:
        return NormalDist(self.mu, self.sigma).cdf(value)


@dataclass(frozen=True)
class LogNormal(Normal):
    """A number whose logarithm is normally distributed."""

    kind: ClassVar[str] = "lognormal"
    form: ClassVar[str] = "lognormal(mean of the logarithm, its standard deviation)"

    def _value_of(self, drawn: ParameterValue) -> ParameterValue:
        return math.exp(_number(super()._value_of(drawn)))

    def _drawn_for(self, value: float) -> float:
        return super()._drawn_for(math.log(value)) if value > 0 else 0.0


@dataclass(frozen=True)
class QNormal(_Rounded, Normal):
    """A normally distributed number, rounded to a multiple of ``q``."""

    kind: ClassVar[str] = "qnormal"
    form: ClassVar[str] = "qnormal(mean, standard deviation, step)"


@dataclass(frozen=True)
class QLogNormal(_Rounded, LogNormal):
    """A lognormal number, rounded to a multiple of ``q``."""

    kind: ClassVar[str] = "qlognormal"
    form: ClassVar[str] = "qlognormal(mean of the logarithm, its standard deviation, step)"


_CLASSES: tuple[type[Dimension], ...] = (
    *(Choice, IntRange),
    *(Uniform, LogUniform, QUniform, QLogUniform),
    *(Normal, LogNormal, QNormal, QLogNormal),
)
DIMENSIONS: dict[str, type[Dimension]] = {cls.kind: cls for cls in _CLASSES}
"""The dimensions by the word that starts their text."""


def dimension_from_json(values: dict[str, Any]) -> Dimension:
    """Returns the dimension that :meth:`Dimension.to_json` described.

    :raises PlanError: If the values describe none.
    """
    fields = dict(values)
    kind = str(fields.pop("kind", ""))
    if kind not in DIMENSIONS:
        raise PlanError(
            f"A search space has no dimension of kind {kind!r}.",
            f"{did_you_mean(kind, DIMENSIONS)} Choose {join_choices(list(DIMENSIONS))}.".strip(),
        )
    if kind == Choice.kind:
        fields["values"] = tuple(fields.get("values", ()))
    try:
        return DIMENSIONS[kind](**fields)
    except TypeError as error:
        raise PlanError(f"A {kind} dimension of a search space cannot be read: {error}.") from error


def _order_problems(low: float, high: float, *, may_be_equal: bool = False) -> list[str]:
    if not (math.isfinite(low) and math.isfinite(high)):
        return [f"goes from {low} to {high}, which has no end"]
    if low > high or (low == high and not may_be_equal):
        return [f"goes from {low:g} to {high:g}: the first has to be the smaller one"]
    return []


def _positive_problems(what: str, value: float) -> list[str]:
    return [] if math.isfinite(value) and value > 0 else [f"has the {what} {value:g}, which has to be above 0"]


def _number(value: ParameterValue) -> float:
    assert isinstance(value, (int, float))
    return float(value)


def _multiple(steps: float, q: float) -> ParameterValue:
    """Returns a multiple of q without the digits that the multiplication of floats adds."""
    value = steps * q
    if float(q).is_integer():
        return int(value)
    return float(f"{value:.12g}")


def _is_in(value: ParameterValue, others: tuple[ParameterValue, ...]) -> bool:
    """True if a value is among the others; True is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in others)


def _listed(values: Sequence[ParameterValue]) -> str:
    return ", ".join(repr(value) for value in dict.fromkeys(values))
