"""The flags of a job mean what the user gave, wherever the values came from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from health_ml.cli.groups import container_parameters
from health_ml.cli.job_arguments import NOT_IN_JOB, job_arguments
from health_ml.cli.parse import ParsedCommand, parse
from health_ml.errors import PlanError
from tests.helpers.police import REPOSITORY

MODEL = "--model=tests.unit.cli.sample_containers.Everything"


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def parsed(*arguments: str) -> ParsedCommand:
    return parse([MODEL, *arguments], start_directory=REPOSITORY)


def arguments_of(command: ParsedCommand, **kwargs: Any) -> tuple[str, ...]:
    return job_arguments(command.typed, command.givens, command.parameters, start_directory=REPOSITORY, **kwargs)


FLAGS = [
    "--an_integer=5",
    "--a_number=1e-3",
    "--a_number=4",
    "--a_count_or_share=1",
    "--a_count_or_share=1.0",
    "--a_count_or_share=None",
    "--a_switch",
    "--no-a_true_switch",
    "--a_text=two words, 'quoted' and \"double\" $HOME \n=",
    "--a_text=",
    "--a_text_or_none=None",
    "--a_colour=dark_blue",
    "--a_path=some/where",
    "--an_even=4",
    "--a_choice=b",
    "--some_texts=a,b",
    "--some_texts=",
    "--some_integers=1,2,3",
    "--some_paths=x,/y",
    "--some_colours=RED,blue",
    "--a_pair=3,4",
    "--two_numbers=0.5,2",
    '--a_dictionary={"a": [1, 2], "b": null}',
    "--a_temperature=30C",
    "--a_list_or_dictionary={'k': 1}",
    "--some_runs=exp:run1,run2",
    "--a_date=2024-02-29",
    "--max_epochs=3",
    "--trainer.gradient_clip_val=0.5",
    '--trainer.val_check_interval={"minutes": 30}',
    "--trainer.enable_model_summary=false",
    "--tag=x",
]


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_mean_the_same_again(flag: str) -> None:
    first = parsed(flag)
    again = parse(arguments_of(first), start_directory=Path("/elsewhere"))
    for name in container_parameters(first.container):
        before, after = getattr(first.container, name), getattr(again.container, name)
        assert str(before) == str(after), name
        assert type(before) is type(after), name
    assert first.container.trainer_argument_overrides == again.container.trainer_argument_overrides
    assert arguments_of(again) == arguments_of(first)


YAML = """
an_integer: 5
a_switch: true
a_true_switch: off
a_text: "1e-3"
a_text_or_none: null
a_colour: RED
some_texts: [a, "b, c"]
some_integers: [1, 2]
some_colours: [blue]
a_pair: [3, 4]
a_dictionary: {a: [1, 2.5], b: {c: null}}
a_path: some/where
some_paths: [x, y]
trainer:
  gradient_clip_val: 0.5
  limit_predict_batches: 3
"""


def test_values_of_a_config_file_become_flags(tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text(YAML)
    first = parsed(f"--config={file}")
    flags = arguments_of(first)
    assert flags[0] == MODEL
    assert not any(flag.startswith("--config") for flag in flags)
    file.unlink()
    again = parse(flags, start_directory=Path("/elsewhere"))
    for name in container_parameters(first.container):
        assert str(getattr(first.container, name)) == str(getattr(again.container, name)), name
    assert first.container.trainer_argument_overrides == again.container.trainer_argument_overrides


def test_a_value_that_no_flag_can_stand_for_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text('some_texts: [\'say "hi, there"\', "it\'s, so"]\n')
    with pytest.raises(PlanError, match=r"some_texts.*cannot be written as a flag"):
        arguments_of(parsed(f"--config={file}"))


def test_flags_that_say_where_to_run_do_not_travel() -> None:
    command = parsed("--cluster=local", "--wait_for_completion", "--max_run_duration=1h", "--different_seeds=2")
    assert arguments_of(command) == (MODEL,)
    assert {"cluster", "sweep", "fan_out", "max_snapshot_mb", "hyperdrive"} <= NOT_IN_JOB


def test_paths_of_what_travels_stay_relative() -> None:
    command = parsed("--some_paths=tests,elsewhere", "--a_path=docs/index.md")
    flags = arguments_of(command, travels=lambda path: path.parts[0] in ("tests", "docs"))
    assert flags[1:] == ("--a_path=docs/index.md", f"--some_paths=tests,{REPOSITORY / 'elsewhere'}")


def test_a_checkpoint_file_is_named_absolutely_and_a_run_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").touch()
    command = parse([MODEL, "--src_checkpoint=a.ckpt"], start_directory=tmp_path)
    flags = job_arguments(command.typed, command.givens, command.parameters, start_directory=tmp_path)
    assert flags[1:] == (f"--src_checkpoint={tmp_path / 'a.ckpt'}",)
    assert arguments_of(parsed("--src_checkpoint=some_run:best.ckpt"))[1:] == ("--src_checkpoint=some_run:best.ckpt",)


def test_paths_that_are_texts_do_not_change_their_meaning(tmp_path: Path) -> None:
    (tmp_path / "table.csv").touch()
    command = parse([MODEL, "--a_file=table.csv"], start_directory=tmp_path)
    arguments = (command.typed, command.givens, command.parameters)
    assert job_arguments(*arguments, start_directory=tmp_path)[1:] == (f"--a_file={tmp_path / 'table.csv'}",)
    flags = job_arguments(*arguments, start_directory=tmp_path, travels=lambda path: True)
    assert flags[1:] == ("--a_file=table.csv",)


@pytest.mark.parametrize("text", ["None", ""])
def test_a_text_that_a_flag_would_take_for_no_value_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text(f'a_text_or_none: "{text}"\n')
    with pytest.raises(PlanError, match=rf"a_text_or_none.*'{text}' cannot be written as a flag"):
        arguments_of(parsed(f"--config={file}"))
