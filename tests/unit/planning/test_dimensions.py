from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_ml.errors import PlanError
from health_ml.planning.dimension_text import (
    DimensionError,
    dimension_from_text,
    dimension_from_value,
    split_outside_brackets,
)
from health_ml.planning.dimensions import (
    Choice,
    Dimension,
    IntRange,
    LogNormal,
    LogUniform,
    Normal,
    QLogNormal,
    QLogUniform,
    QNormal,
    QUniform,
    Uniform,
    dimension_from_json,
)

ALL = [
    Choice(("a", 1, 2.5, True, None)),
    IntRange(-2, 3),
    Uniform(0.5, 2),
    LogUniform(1e-5, 0.1),
    QUniform(0.1, 0.55, 0.1),
    QLogUniform(1, 100, 5),
    Normal(3, 0.5),
    LogNormal(0, 1),
    QNormal(0, 10, 2),
    QLogNormal(0, 1, 0.5),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4,1e-3", Choice(("1e-4", "1e-3"))),
        ("007", Choice(("007",))),
        (" a , b ", Choice(("a", "b"))),
        ("'a,b',c", Choice(("a,b", "c"))),
        ("[1,2],[3,4]", Choice(("[1,2]", "[3,4]"))),
        ("choice(Adam, SGD)", Choice(("Adam", "SGD"))),
        ("''", Choice(("",))),
        ("0..4", IntRange(0, 4)),
        ("-3..-1", IntRange(-3, -1)),
        ("0..10..5", Choice((0, 5, 10))),
        ("../data/a,../data/b", Choice(("../data/a", "../data/b"))),
        ("int(1,8)", IntRange(1, 8)),
        ("randint(8)", IntRange(0, 7)),
        ("uniform(0, 1)", Uniform(0, 1)),
        ("LogUniform(1e-5,1e-1)", LogUniform(1e-5, 0.1)),
        ("quniform(0,1,.25)", QUniform(0, 1, 0.25)),
        ("qloguniform(1,100,5)", QLogUniform(1, 100, 5)),
        ("normal(-1,2)", Normal(-1, 2)),
        ("lognormal(0,1)", LogNormal(0, 1)),
        ("qnormal(0,1,1)", QNormal(0, 1, 1)),
        ("qlognormal(0,1,1)", QLogNormal(0, 1, 1)),
    ],
)
def test_text(text: str, expected: Dimension) -> None:
    assert dimension_from_text(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no values"),
        ("choice()", "has no values"),
        ("a,b,a", "has 'a' twice"),
        ("0..", r"is 0\.\., a range without end; write for example 0\.\.9"),
        ("..4", "write first..last with whole numbers"),
        ("0.1..0.5", r"or uniform\(lowest, highest\)"),
        ("0..1.5", "with whole numbers"),
        ("0..8..2..1", "with whole numbers"),
        ("4..0", "which is empty: a range goes up"),
        ("0..4..0", "in steps of 1 or more"),
        ("0..1000000", "more than 100000 values"),
        ("uniform(1)", r"write uniform\(lowest, highest\) with numbers"),
        ("uniform(a,b)", "with numbers"),
        ("uniform(1,0)", "goes from 1 to 0: the first has to be the smaller one"),
        ("uniform(1,1)", "goes from 1 to 1"),
        ("uniform(0,inf)", "which has no end"),
        ("loguniform(0,1)", "has the lowest value 0, which has to be above 0"),
        ("quniform(0,1,0)", "has the step 0"),
        ("quniform(0.1,0.2,1)", "has no multiple of 1 from 0.1 to 0.2"),
        ("normal(0,0)", "has the standard deviation 0"),
        ("normal(nan,1)", "has a mean that is no number"),
        ("int(1.5,2)", r"write int\(lowest, highest\) with whole numbers"),
        ("int(3,2)", "goes from 3 to 2"),
        ("unifrom(0,1)", r"which is no distribution\. Did you mean 'uniform'"),
        ("choice(a", r"lacks a closing \)"),
        ("'a", "lacks a closing '"),
    ],
)
def test_text_that_is_no_dimension(text: str, message: str) -> None:
    with pytest.raises(DimensionError, match=message):
        dimension_from_text(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0..2", IntRange(0, 2)),
        ([1, 2.5, "a", None, True], Choice((1, 2.5, "a", None, True))),
        ([1, True], Choice((1, True))),
        ({"choice": [1, 2]}, Choice((1, 2))),
        ({"uniform": [0, 1]}, Uniform(0, 1)),
        ({"randint": 5}, IntRange(0, 4)),
        ({"type": "choice", "values": [1]}, Choice((1,))),
        ({"type": "uniform", "min_value": 0, "max_value": 1}, Uniform(0, 1)),
        ({"type": "loguniform", "min_value": -6, "max_value": -1}, LogUniform(math.exp(-6), math.exp(-1))),
        ({"type": "randint", "upper": 3}, IntRange(0, 2)),
        (Uniform(0, 1), Uniform(0, 1)),
    ],
)
def test_values_of_yaml(value: object, expected: Dimension) -> None:
    assert dimension_from_value(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, r"has only the value 5; write \[5\]"),
        ([], "has no values"),
        ([1, 1], "has 1 twice"),
        ([math.inf], "has inf, which is no number"),
        ([[1]], r"has the value \[1\]; values are texts, numbers"),
        ({}, "has 0 keys"),
        ({"uniform": [0, 1], "choice": [1]}, "has 2 keys; give one distribution"),
        ({"type": "uniform", "min_value": 0}, r"is uniform\(min_value=0\); give numbers for min_value, max_value"),
        ({"type": "uniform", "min_value": "0", "max_value": 1}, "give numbers for"),
        ({"type": "uniformly"}, r"has the type 'uniformly'\. Did you mean 'uniform'"),
        (object(), "is <object object .* which is no distribution"),
        (LogUniform(-1, 1), "has the lowest value -1"),
    ],
)
def test_value_that_is_no_dimension(value: object, message: str) -> None:
    with pytest.raises(DimensionError, match=message):
        dimension_from_value(value)


def test_distributions_of_the_sdk_are_understood() -> None:
    sweep = pytest.importorskip("azure.ai.ml.sweep")
    pairs = [
        (sweep.Choice(["a", 1]), Choice(("a", 1))),
        (sweep.Randint(5), IntRange(0, 4)),
        (sweep.Uniform(0, 1), Uniform(0, 1)),
        (sweep.LogUniform(-6, -1), LogUniform(math.exp(-6), math.exp(-1))),
        (sweep.QUniform(0, 1, 0.5), QUniform(0, 1, 0.5)),
        (sweep.QLogUniform(0, 3, 1), QLogUniform(1, math.exp(3), 1)),
        (sweep.Normal(1, 2), Normal(1, 2)),
        (sweep.LogNormal(1, 2), LogNormal(1, 2)),
        (sweep.QNormal(1, 2, 3), QNormal(1, 2, 3)),
        (sweep.QLogNormal(1, 2, 3), QLogNormal(1, 2, 3)),
    ]
    assert [dimension_from_value(given) for given, _ in pairs] == [expected for _, expected in pairs]


@pytest.mark.parametrize(
    ("dimension", "grid"),
    [
        (IntRange(-1, 1), (-1, 0, 1)),
        (QUniform(0, 0.3, 0.1), (0.0, 0.1, 0.2, 0.3)),
        (QUniform(3, 20, 5), (5, 10, 15, 20)),
        (Choice(("b", "a")), ("b", "a")),
        (Uniform(0, 1), None),
        (QLogUniform(1, 9, 1), None),
        (QNormal(0, 1, 1), None),
    ],
)
def test_grid(dimension: Dimension, grid: tuple[object, ...] | None) -> None:
    assert dimension.grid() == grid


@pytest.mark.parametrize("dimension", ALL)
def test_json_and_back_is_equal(dimension: Dimension) -> None:
    assert dimension.problems() == []
    assert dimension_from_json(json.loads(json.dumps(dimension.to_json()))) == dimension


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "chioce"}, "no dimension of kind 'chioce'.*Did you mean 'choice'"),
        ({"kind": "int", "low": 1}, "'high'"),
    ],
)
def test_json_that_is_no_dimension(values: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        dimension_from_json(values)


@pytest.mark.parametrize("dimension", ALL[1:])
@given(share=st.floats(0, 1))
def test_every_draw_gives_a_value_that_leads_back_to_it(dimension: Dimension, share: float) -> None:
    draw = dimension.draw_from()
    drawn: float = min(draw.low + share * (draw.high - draw.low), draw.high)
    drawn = round(drawn) if draw.is_integer else drawn
    value = dimension.value_of(drawn)
    again = dimension.drawn_for(value)
    assert isinstance(value, (int, float))
    assert isinstance(again, (int, float))
    assert draw.low <= again <= draw.high
    if isinstance(dimension, QLogUniform | QNormal | QLogNormal):  # rounding forgets where in the step it was
        assert value / dimension.q == pytest.approx(round(value / dimension.q))
    else:
        assert again == pytest.approx(drawn, rel=1e-6, abs=1e-9)


def test_choice_is_drawn_as_it_is() -> None:
    assert [ALL[0].value_of(ALL[0].drawn_for(value)) for value in ALL[0].draw_from().categories] == list(
        ALL[0].grid() or ()
    )


def test_distributions_are_what_they_say() -> None:
    assert Normal(3, 0.5).value_of(0.5) == 3
    assert Normal(0, 1).value_of(0.975) == pytest.approx(1.959964)
    assert LogNormal(1, 1).value_of(0.5) == pytest.approx(math.e)
    assert QNormal(0, 10, 4).value_of(0.6) == 4
    assert QLogNormal(1, 1, 0.5).value_of(0.5) == 2.5
    assert QLogUniform(1, 100, 5).value_of(13) == 15


def test_split_outside_brackets() -> None:
    assert split_outside_brackets("a=choice(1, 2)  b='x y' c={d: [e f]}", " ") == [
        "a=choice(1, 2)", "b='x y'", "c={d: [e f]}",
    ]  # fmt: skip
