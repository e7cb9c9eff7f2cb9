from typing import Any

import param
import pytest

from health_ml.param_types import CustomTypeParam, IntTuple, ListOrDictParam, RunIdOrListParam, json_or_literal


class Holder(param.Parameterized):
    size = IntTuple(default=(1, 2), length=2, allow_None=True)
    either = ListOrDictParam(default=None, allow_None=True)
    runs = RunIdOrListParam(default=None, allow_None=True)


def test_int_tuple_takes_whole_numbers_only() -> None:
    holder = Holder(size=(3, 4))
    assert holder.size == (3, 4)
    with pytest.raises(ValueError, match=r"whole numbers, not 4\.0"):
        holder.size = (3, 4.0)
    with pytest.raises(ValueError, match="whole numbers, not True"):
        holder.size = (True, 4)
    with pytest.raises(ValueError, match="length"):
        holder.size = (3, 4, 5)
    holder.size = None
    assert holder.size is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a, b,,c", ["a", "b", "c"]),
        ("", []),
        ('["x", 1]', ["x", 1]),
        ("['it\\'s']", ["it's"]),
        ("{'a': 1}", {"a": 1}),
        ('{"a": null}', {"a": None}),
    ],
)
def test_list_or_dict_from_text(text: str, value: Any) -> None:
    assert Holder.param["either"].from_string(text) == value


def test_list_or_dict_refuses_text_that_is_neither() -> None:
    with pytest.raises(ValueError, match="neither JSON nor a Python literal"):
        Holder.param["either"].from_string("{a:1}")


def test_list_or_dict_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="takes a list or a dictionary, not 3"):
        Holder(either=3)


def test_run_ids_are_always_a_list() -> None:
    assert Holder.param["runs"].from_string("exp:run1, run2") == ["run1", "run2"]
    assert Holder.param["runs"].from_string("") == []
    with pytest.raises(ValueError, match="one or several run ids"):
        Holder(runs="run1")
    with pytest.raises(ValueError, match="one or several run ids"):
        Holder(runs=[""])


def test_a_custom_type_has_to_say_how_to_read_text() -> None:
    with pytest.raises(NotImplementedError, match="has to implement from_string"):
        CustomTypeParam().from_string("x")


def test_what_is_no_dictionary_is_named_without_the_insides_of_python() -> None:
    with pytest.raises(ValueError, match=r"'foo' is neither JSON nor a Python literal: Expecting value.*\.$"):
        json_or_literal("foo")
