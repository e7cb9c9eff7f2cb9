from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_ml.azure.command import check_values, encoded_names, job_command, quoted
from health_ml.errors import PlanError
from health_ml.planning.dimensions import Choice
from health_ml.planning.search_space import SearchSpace

ODD = [
    *(
        "",
        " ",
        "a b",
        "it's",
        '"',
        "$HOME",
        "`id`",
        "$(id)",
        "\\",
        "\n",
        "\t",
        "*",
        "~",
        "#",
        "!",
        "é雪",
        "--",
        "-x=$y",
    ),
    *("${{inputs.a}}", "{inputs.a}", "{outputs.b}", "{search_space.c}", "{{", "}}", '{"a": {"inputs.x": 1}}'),
]
SERVICE = re.compile(r"\$\{\{\s*(inputs|outputs|search_space)\.([\w-]+)\s*\}\}")
SINGLE_BRACKETS = re.compile(r"(?<!\{)\{(inputs|outputs|search_space)\.([^}]*)\}(?!\})")


def as_the_shell_reads(line: str) -> list[str]:
    """Returns what a program gets from a real shell."""
    show = [sys.executable, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))"]
    script = f'set -- {line}\nexec "$PY" -c "$CODE" "$@"'
    done = subprocess.run(
        ["/bin/bash", "-c", script], env={"PY": show[0], "CODE": show[2]}, capture_output=True, text=True, check=True,
        timeout=30,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def test_a_shell_gives_back_what_was_quoted() -> None:
    line = " ".join(quoted(argument) for argument in ODD)
    assert as_the_shell_reads(line) == ODD
    assert not SERVICE.search(line)
    assert not SINGLE_BRACKETS.search(line)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="${}'\"\\ inputs.ab\n", max_size=30), max_size=4))
def test_nothing_in_an_argument_is_replaced(arguments: list[str]) -> None:
    import shlex

    line = " ".join(quoted(argument) for argument in arguments)
    assert shlex.split(line) == arguments
    assert "${{" not in line
    assert not SINGLE_BRACKETS.search(line)


def test_simple_arguments_stay_readable() -> None:
    line = job_command(["--model=HelloWorld", "--max_epochs=3", "--tag=a b"])
    assert line == "python .himl_runner/start.py himl-runner --model=HelloWorld --max_epochs=3 '--tag=a b'"


def test_parameters_that_vary_are_expressions_in_quotes() -> None:
    names = encoded_names(["l_rate", "trainer.max_steps", "trainer/max_steps", "2nd"])
    assert names == {
        "l_rate": "l_rate",
        "trainer.max_steps": "trainer_max_steps",
        "trainer/max_steps": "trainer_max_steps_",
        "2nd": "_2nd",
    }
    assert job_command([], {"trainer.max_steps": "trainer_max_steps"}).endswith(
        " '--trainer.max_steps=${{search_space.trainer_max_steps}}'"
    )


@pytest.mark.parametrize("value", ["it's", "two\nlines", "${{inputs.x}}"])
def test_values_that_would_break_the_command(value: str) -> None:
    with pytest.raises(PlanError, match=r"name=.*would not arrive as it is"):
        check_values(SearchSpace((("name", Choice(("fine", value))),)))
