import pickle

import pytest

from health_ml.errors import ArgumentsError, HimlError, did_you_mean, join_choices, nearest_names


def test_an_error_prints_message_and_hint_as_one_paragraph() -> None:
    assert str(HimlError("The file x is missing.", "Give another one.")) == "The file x is missing. Give another one."
    assert str(HimlError("Only a message.")) == "Only a message."


def test_exit_code_is_that_of_the_class_unless_given() -> None:
    assert HimlError("a").exit_code == 1
    assert ArgumentsError("a").exit_code == 2
    assert ArgumentsError("a", exit_code=7).exit_code == 7


def test_an_error_survives_pickling_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(ArgumentsError("message", "hint", 9)))
    assert (type(copy), copy.message, copy.hint, copy.exit_code) == (ArgumentsError, "message", "hint", 9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("max_epoch", ["max_epochs"]), ("MAX_EPOCHS", ["max_epochs"]), ("zzz", [])],
)
def test_nearest_names(name: str, expected: list[str]) -> None:
    assert nearest_names(name, ["max_epochs", "l_rate", "tag"]) == expected


def test_did_you_mean_is_a_question_or_nothing() -> None:
    assert did_you_mean("HelloWrld", ["HelloWorld", "Digits"]) == "Did you mean 'HelloWorld'?"
    assert did_you_mean("qqqqq", ["HelloWorld"]) == ""


@pytest.mark.parametrize(
    ("choices", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a or b"), (["a", "b", "c"], "a, b or c")]
)
def test_join_choices(choices: list[str], text: str) -> None:
    assert join_choices(choices) == text
