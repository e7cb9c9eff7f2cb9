"""The text of ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from health_ml.cli.command_line import RunnerFlags, read_command_line
from health_ml.cli.help import help_text
from health_ml.deep_learning_config import CONTAINER_PARAMETER_GROUPS, parameters_of
from health_ml.errors import ArgumentsError, ModelSearchError
from health_ml.experiment_config import ExperimentConfig
from tests.helpers.police import REPOSITORY
from tests.unit.cli import sample_containers

MODEL = f"--model={sample_containers.__name__}."


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def text_of(*argv: str, width: int = 100, folder: Path = REPOSITORY) -> str:
    return help_text(read_command_line(["--help", *argv]), start_directory=folder, width=width)


def test_without_a_model_every_flag_that_models_share_is_listed_once() -> None:
    flags = [line.split()[0].partition("=")[0] for line in text_of().splitlines() if line.startswith("  --")]
    owners = (RunnerFlags, ExperimentConfig, *CONTAINER_PARAMETER_GROUPS)
    assert flags == [f"--{name}" for owner in owners for name in parameters_of(owner)]
    assert len(flags) >= 75


def test_types_ranges_defaults_and_choices_are_shown() -> None:
    text = " ".join(text_of(width=120).split())
    for expected in (
        "--max_epochs=INT Number of epochs to train. [at least 1 and at most 1000000000, default 100]",
        "--l_rate_scheduler=Exponential|Step|Polynomial|Cosine|MultiStep How the learning rate decays. "
        "[default Polynomial]",
        "--use_mixed_precision On a GPU, compute in 16 bits where that is safe: bfloat16 where the GPU has it, else "
        "float16. [default on]",
        "--adam_betas=TUPLE The two betas of Adam and AMSGrad. [default 0.9,0.999]",
        "--output_to=PATH",
        "--trainer.ARGUMENT=VALUE",
    ):
        assert expected in text


def test_with_a_model_its_own_parameters_come_first_and_its_defaults_are_shown() -> None:
    text = text_of(f"{MODEL}Preset")
    assert "[at least 1, default 7]" in text
    assert "default 0.25]" in text
    own = text_of(f"{MODEL}Everything").split("\n\n")
    assert own[3].startswith("Everything: parameters of this container:\n  --an_integer=INT")
    assert "set in the code only" in own[3]


def test_with_a_variant_its_defaults_are_shown() -> None:
    assert "default 40.0]" in text_of(f"{MODEL}Everything", "--model_variant=hot")


def test_the_model_can_come_from_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"model: {MODEL.removeprefix('--model=')}Preset\n")
    assert "default 0.25]" in text_of("--config=run.yaml", folder=tmp_path)


@pytest.mark.parametrize("width", [50, 72, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    too_wide = [line for line in text_of(width=width).splitlines() if len(line) > width]
    assert [line for line in too_wide if len(line.split()) > 1] == []


def test_a_model_that_does_not_exist() -> None:
    with pytest.raises(ModelSearchError, match="HelloWorld"):
        text_of("--model=HelloWorlt")


def test_a_wrong_flag_next_to_a_model() -> None:
    with pytest.raises(ArgumentsError, match="--num_nodes=0"):
        text_of("--model=HelloWorld", "--num_nodes=0")
