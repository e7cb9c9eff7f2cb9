"""The text of a value of every type."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_ml.cli.arguments import is_left_empty, parse_text, reader_for, split_items
from health_ml.cli.describe import describe, metavar
from tests.unit.cli.sample_containers import Colour, Everything

PARAMETERS = Everything.param.objects(instance=False)
READABLE = sorted(name for name, parameter in PARAMETERS.items() if reader_for(parameter) and name != "name")


def parsed(name: str, text: str) -> Any:
    return parse_text(PARAMETERS[name], text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("an_integer", "-5", -5),
        ("an_integer", "1_000", 1000),
        ("a_number", "-1e-3", -1e-3),
        ("a_number", "inf", float("inf")),
        ("a_count_or_share", "None", None),
        ("a_text", "", ""),
        ("a_text", "None", "None"),
        ("a_text", " x=1 ", " x=1 "),
        ("a_text_or_none", "None", None),
        ("a_colour", "blue", Colour.DARK_BLUE),
        ("a_colour", "Dark_Blue", Colour.DARK_BLUE),
        ("a_colour", "Colour.RED", Colour.RED),
        ("a_path", "None", None),
        ("a_path", "", None),
        ("a_path", "a/b c", Path("a/b c")),
        ("a_choice", "b", "b"),
        ("some_texts", "a, b,,c", ["a", "b", "c"]),
        ("some_texts", "['a', \"b,c\"]", ["a", "b,c"]),
        ("some_texts", "[]", []),
        ("some_texts", "", []),
        ("some_texts", "it's,fine", ["it's", "fine"]),
        ("some_integers", "[1, 2]", [1, 2]),
        ("some_integers", "1,2", [1, 2]),
        ("some_paths", "/x,/y", [Path("/x"), Path("/y")]),
        ("some_colours", "RED,blue", [Colour.RED, Colour.DARK_BLUE]),
        ("a_pair", "(3, 4)", (3, 4)),
        ("two_numbers", ".9,.99", (0.9, 0.99)),
        ("two_numbers", "(.9,.99)", (0.9, 0.99)),
        ("two_numbers", "[.9, .99]", (0.9, 0.99)),
        ("a_dictionary", "{'a': [1, None]}", {"a": [1, None]}),
        ("a_dictionary", '{"it\'s": true}', {"it's": True}),
        ("a_dictionary", "", {}),
        ("a_temperature", "25C", 25.0),
        ("a_list_or_dictionary", "a,b", ["a", "b"]),
        ("a_list_or_dictionary", "{'a': 1}", {"a": 1}),
        ("some_runs", "exp:run1,run2", ["run1", "run2"]),
        ("a_date", "2030-01-31", datetime.date(2030, 1, 31)),
    ],
)
def test_value_of_a_text(name: str, text: str, value: Any) -> None:
    result = parsed(name, text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "is_meant"),
    [
        ("an_integer", False),
        ("a_count_or_share", False),
        ("a_text", True),
        ("a_text_or_none", False),
        ("a_path", False),
        ("a_file", False),
        ("an_even", False),
        ("some_texts", True),
        ("a_dictionary", True),
        ("a_list_or_dictionary", True),
        ("a_switch", True),
    ],
)
def test_where_an_empty_text_can_be_meant(name: str, is_meant: bool) -> None:
    assert is_left_empty(PARAMETERS[name], "") is not is_meant
    assert not is_left_empty(PARAMETERS[name], "1")


@pytest.mark.parametrize("word", ["on", "t", "TRUE", "y", "Yes", "1"])
def test_words_for_on(word: str) -> None:
    assert parsed("a_switch", word) is True


@pytest.mark.parametrize("word", ["off", "f", "False", "n", "NO", "0"])
def test_words_for_off(word: str) -> None:
    assert parsed("a_true_switch", word) is False


def test_whole_numbers_and_fractions_stay_different() -> None:
    values = [parsed("a_count_or_share", text) for text in ("1", "1.0", "4", "0.5", "1e0")]
    assert [(type(value), value) for value in values] == [(int, 1), (float, 1.0), (int, 4), (float, 0.5), (float, 1.0)]


def test_a_number_with_a_fraction_for_default_stays_a_float() -> None:
    value = parse_text(PARAMETERS["a_number"], "1", keeps_whole_numbers=False)
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("an_integer", "1.5", "a whole number, at least 0 and at most 10"),
        ("an_integer", "1e3", "a whole number"),
        ("an_integer", "None", "a whole number"),
        ("an_integer", "", "a whole number"),
        ("a_number", "", "a number"),
        ("a_number", "half", "a number"),
        ("a_switch", "maybe", "true or false"),
        ("a_switch", "", "true or false"),
        ("a_colour", "green", "red or blue"),
        ("a_colour", "", "red or blue"),
        ("an_even", "3", "3 is odd, and only even numbers make pairs"),
        ("a_choice", "d", "one of a, b or c"),
        ("some_integers", "1,x", "a comma-separated list of whole numbers"),
        ("some_colours", "red,green", "a comma-separated list of red or blue"),
        ("a_pair", "1", "2 whole numbers, separated by commas"),
        ("a_pair", "1.0,2", "2 whole numbers"),
        ("a_dictionary", "{", "neither JSON nor a Python literal"),
        ("a_dictionary", "[1]", "a dictionary"),
        ("a_dictionary", "{[]: 1}", "neither JSON nor a Python literal"),
        ("a_dictionary", "[" * 100_000, "a dictionary"),
        ("a_temperature", "warm", "could not convert"),
        ("a_date", "tomorrow", "a date, like"),
        ("an_object", "x", "cannot be set from the outside"),
    ],
)
def test_text_that_stands_for_no_value(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(name, text)


@pytest.mark.parametrize("name", READABLE)
def test_every_type_is_described(name: str) -> None:
    assert describe(PARAMETERS[name])
    assert metavar(PARAMETERS[name]).strip()


# --- properties -------------------------------------------------------------------------------------------------------

ITEMS = st.text(
    st.characters(codec="utf-8", exclude_characters="'\",[]()\n", exclude_categories=("Z", "C")), min_size=1
)


@given(st.integers())
def test_every_integer_comes_back(value: int) -> None:
    assert parsed("an_integer", str(value)) == value


@given(st.floats(allow_nan=False))
def test_every_number_comes_back(value: float) -> None:
    assert parsed("a_number", repr(value)) == value


@given(st.text())
def test_every_text_comes_back(value: str) -> None:
    assert parsed("a_text", value) == value


@given(st.lists(ITEMS))
def test_every_list_comes_back(value: list[str]) -> None:
    assert split_items(",".join(value)) == value
    assert split_items(f"[{', '.join(value)}]") == value
    assert split_items(",".join(f"'{item},'" for item in value)) == [f"{item}," for item in value]


@given(st.tuples(st.integers(), st.integers()))
def test_every_pair_comes_back(value: tuple[int, int]) -> None:
    assert parsed("a_pair", str(value)) == value


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.lists(st.booleans())))
def test_every_dictionary_comes_back(value: dict[str, Any]) -> None:
    assert parsed("a_dictionary", repr(value)) == value


@given(st.sampled_from(READABLE), st.text())
def test_nothing_but_a_value_error_comes_out(name: str, text: str) -> None:
    try:
        parsed(name, text)
    except ValueError as error:
        assert str(error)  # noqa: PT017
