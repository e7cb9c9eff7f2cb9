"""Values from YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from health_ml.cli.config_file import read_config_files
from health_ml.cli.parse import ParsedCommand, parse
from health_ml.cli.show_config import render_config
from health_ml.errors import ArgumentsError
from health_ml.experiment_config import DebugDDPOptions
from tests.unit.cli.sample_containers import Colour

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
MODULE = "tests.unit.cli.sample_containers"


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))


def parsed(tmp_path: Path, text: str, *flags: str) -> ParsedCommand:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return parse(["--config=run.yaml", f"--model={MODULE}.Everything", *flags], start_directory=tmp_path)


def problems_of(tmp_path: Path, text: str | bytes) -> str:
    (tmp_path / "run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArgumentsError, match=r".") as caught:
        parse(["--config=run.yaml", f"--model={MODULE}.Everything"], start_directory=tmp_path)
    return str(caught.value)


def test_values_read_like_the_same_text_after_a_flag(tmp_path: Path) -> None:
    result = parsed(
        tmp_path,
        """
        debug_ddp: OFF          # a boolean for YAML, a member of the enum here
        weight_decay: 1e-3      # a text for YAML 1.1
        pl-limit-val-batches: 1.0
        pl_limit_test_batches: 1
        a_text: 010
        a_text_or_none: null
        a_switch: yes
        a_colour: Blue
        some_texts: [a, "b,c", 1]
        some_integers: 1,2
        some_paths:
          - data
        some_colours: [red]
        a_pair: [3, 4]
        two_numbers: (.5, 1)
        a_dictionary: {a: [1, null], b: {c: 2.5}}
        a_list_or_dictionary: [x, y]
        some_runs: exp:r1,r2
        a_date: 2030-01-31
        trainer:
          devices: 2
          gradient_clip_val: 1e-2
          accelerator: "cpu"
          max_time: null
        trainer.max_steps: 7
        """,
    )
    own: Any = result.container
    assert result.experiment_config.debug_ddp is DebugDDPOptions.OFF
    assert own.weight_decay == 1e-3
    assert [type(own.pl_limit_val_batches), type(own.pl_limit_test_batches)] == [float, int]
    assert (own.a_text, own.a_text_or_none, own.a_switch, own.a_colour) == ("010", None, True, Colour.DARK_BLUE)
    assert (own.some_texts, own.some_integers) == (["a", "b,c", "1"], [1, 2])
    assert (own.some_paths, own.some_colours) == ([tmp_path / "data"], [Colour.RED])
    assert (own.a_pair, own.two_numbers) == ((3, 4), (0.5, 1))
    assert own.a_dictionary == {"a": [1, None], "b": {"c": 2.5}}
    assert (own.a_list_or_dictionary, own.some_runs, str(own.a_date)) == (["x", "y"], ["r1", "r2"], "2030-01-31")
    assert own.trainer_argument_overrides == {
        "devices": 2,
        "gradient_clip_val": 0.01,
        "accelerator": "cpu",
        "max_time": None,
        "max_steps": 7,
    }
    assert result.sources["trainer.devices"] == "config file run.yaml"


def test_quoted_values_are_texts(tmp_path: Path) -> None:
    assert parsed(tmp_path, "a_text_or_none: 'None'").container.a_text_or_none == "None"  # type: ignore[attr-defined]


def test_the_model_can_be_named_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"model: {MODULE}.Everything\n")
    assert parse(["--config=run.yaml"], start_directory=tmp_path).container.model_name == "Everything"


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    result = parsed(tmp_path, "trainer: &t {devices: 2}\n<<: {a_text: merged, an_integer: 1}\nan_integer: 2\n")
    assert (result.container.a_text, result.container.an_integer) == ("merged", 2)  # type: ignore[attr-defined]


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert parsed(tmp_path, "# nothing\n").sources["max_epochs"] == "default"


def test_a_value_that_changes_nothing_is_no_contradiction(tmp_path: Path) -> None:
    text = "docker_shm_size: 400g\nregression_test_csv_tolerance: 0.0\nmax_epochs: 100\n"
    result = parsed(tmp_path, text, "--run_inference_only", "--src_checkpoint=x")
    assert result.sources["max_epochs"] == "config file run.yaml"


def test_a_value_that_has_no_effect_is_one(tmp_path: Path) -> None:
    assert "--docker_shm_size has no effect on this machine" in problems_of(tmp_path, "docker_shm_size: 1g")


def test_everything_wrong_is_reported_with_its_line(tmp_path: Path) -> None:
    text = problems_of(
        tmp_path,
        "max_epochs: 0\nmax_epoch: 3\nsome_integers: [1, x]\na_colour: [red]\na_text: {a: 1}\nan_integer:\n"
        "trainer: {device: 2}\nconfig: other.yaml\nno_a_switch: true\n",
    )
    for expected in (
        "max_epochs=0 (run.yaml, line 1): Parameter 'max_epochs' must be at least 1, not 0.",
        "Unknown name max_epoch=3 (run.yaml, line 2). Did you mean max_epochs?",
        "some_integers (run.yaml, line 3): it takes a comma-separated list of whole numbers.",
        "a_colour (run.yaml, line 4): Parameter 'a_colour' value must be an instance of Colour",
        "a_text (run.yaml, line 5): Parameter 'a_text' only takes a string value",
        "an_integer= (run.yaml, line 6): it takes a whole number, at least 0 and at most 10, not null.",
        "trainer.device=2 (run.yaml, line 7): the Lightning Trainer has no argument 'device'.",
        "config=other.yaml (run.yaml, line 8): --config works on the command line only.",
        "Unknown name no_a_switch=true (run.yaml, line 9). Did you mean a_switch",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "line 1: expected 'flag: value' pairs."),
        ("tag: a\n\ntag: b\n", "line 3: 'tag' is given twice, first in line 1."),
        ("tag: a\nl_rate: [1\n", "line 3: "),
        ("tag: a\n\tl_rate: 1\n", "line 2: "),
        ("{a: 1}: 2\n", "line 1: the name of a flag has to be a plain text."),
        ("a_dictionary: !!python/object:os.system {}\n", "line 1: could not determine a constructor"),
        ("a_dictionary: {a: 2030-99-99}\n", "month must be in"),
        (b"tag: \xff\xfe\n", "it is not YAML"),
        ("a: " + "[" * 5000, "--config=run.yaml: "),
        ("tag: a\n---\ntag: b\n", "line 2: "),
        (BOMB, "its aliases (*name) make 102908576 values"),
        ("a: &a\n  <<: *a\n", "line 1: this value contains itself"),
        ("some_texts: &a [x, *a]\n", "line 1: this value contains itself"),
        ("trainer: 5\n", "trainer=5 (run.yaml, line 1): this name takes arguments of the Lightning Trainer"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in problems_of(tmp_path, text)


def test_a_long_list_and_a_few_aliases_are_fine(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"a: &a [{'1, ' * 120_000}1]\n")
    (entry,) = read_config_files(["run.yaml"], start_directory=tmp_path)
    assert len(entry.native) == 120_001
    (tmp_path / "run.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &c {x: 1}, y: *c}\n")
    entries = read_config_files(["run.yaml"], start_directory=tmp_path)
    assert [entry.native for entry in entries] == [[1, 2], [[1, 2], [1, 2]], {"x": 1, "y": {"x": 1}}]


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match=r"--config=a.yaml cannot be read: No such file.*--config=\. cannot be"):
        read_config_files(["a.yaml", "."], start_directory=tmp_path)


@given(st.binary(max_size=60) | st.text(alphabet="ab:{}[]&*!-,\n '\"<|>", max_size=40).map(str.encode))
def test_nothing_but_an_arguments_error_comes_out(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    try:
        read_config_files(["any.yaml"], start_directory=file.parent)
    except ArgumentsError as error:
        assert "--config=any.yaml" in str(error)  # noqa: PT017
    finally:
        file.unlink()


# --- the printed configuration ----------------------------------------------------------------------------------------


def values_in(printed: str) -> list[str]:
    return [line.rpartition("  # ")[0] for line in printed.splitlines()]


@example("0\xa0", {"\xa0": "\u2003"})
@given(st.text(), st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers() | st.none(), max_size=2))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_survives_being_printed(tmp_path: Path, text: str, dictionary: dict[str, Any]) -> None:
    flags = [f"--a_text={text}", f"--a_dictionary={dictionary!r}"]
    first: Any = parse([f"--model={MODULE}.Everything", *flags], start_directory=tmp_path).container
    parsed_again: Any = parsed(
        tmp_path, render_config(parse([f"--model={MODULE}.Everything", *flags], start_directory=tmp_path))
    ).container
    assert (parsed_again.a_text, parsed_again.a_dictionary) == (first.a_text, first.a_dictionary)


def test_the_printed_configuration_means_the_same(tmp_path: Path) -> None:
    flags = [
        "--a_pair=5,6", "--a_colour=blue", "--an_even=8", "--a_text=it's: #1\nsecond line", "--a_path=x y",
        "--a_dictionary={'a': [1, 'x']}", "--pl_limit_val_batches=1.0", "--some_texts=a,'b,c'", "--a_date=2030-01-31",
        "--src_checkpoint=run_1:best.ckpt", "--model_variant=hot", "--trainer.gradient_clip_val=0.5",
        "--trainer.precision=32", "--log_level=DEBUG", "--no-a_true_switch", "--l_rate=1e-7",
    ]  # fmt: skip
    first = parse([f"--model={MODULE}.Everything", *flags], start_directory=tmp_path)
    (tmp_path / "printed.yaml").write_text(render_config(first))
    second = parse(["--config=printed.yaml"], start_directory=tmp_path)
    assert values_in(render_config(second)) == values_in(render_config(first))
    assert second.container.trainer_argument_overrides == first.container.trainer_argument_overrides
    assert [type(second.container.pl_limit_val_batches), second.experiment_config.log_level] == [
        float,
        first.experiment_config.log_level,
    ]


def test_the_printed_configuration_names_the_sources(tmp_path: Path) -> None:
    lines = render_config(parsed(tmp_path, "an_integer: 4", "--a_text=b", "--model_variant=hot")).splitlines()
    for line in (
        "an_integer: 4  # config file run.yaml",
        "a_text: b  # command line",
        "a_temperature: 40.0  # model variant hot",
        "a_number: 0.5  # container Everything",
        "max_epochs: 100  # default",
        "# an_object: None  # container Everything; set in the code only",
    ):
        assert line in lines
