"""Log messages, the summary of a run, and tracebacks that show the user's code."""

from __future__ import annotations

import json
import logging
import math
import re
import types
from pathlib import Path

import pytest

from health_ml.cli.console import configure_logging, format_user_traceback, render_summary, restored_logging
from health_ml.deep_learning_config import RunPaths
from health_ml.errors import RegressionTestError
from health_ml.experiment_config import LogLevel
from health_ml.records.record import RunStatus
from health_ml.training.result import RunResult


@pytest.fixture
def root_logger() -> logging.Logger:
    return logging.getLogger()


def logged(capsys: pytest.CaptureFixture[str], level: LogLevel | None, local_rank: int = 0) -> list[str]:
    with restored_logging():
        configure_logging(level, local_rank)
        configure_logging(level, local_rank)
        logger = logging.getLogger("some.model")
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)(f"a message of {name}")
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("level", "count"),
    [
        (LogLevel.DEBUG, 4),
        (LogLevel.INFO, 3),
        (None, 3),
        (LogLevel.WARNING, 2),
        (LogLevel.WARN, 2),
        (LogLevel.ERROR, 1),
    ],
)
def test_messages_down_to_the_level_are_shown_once(
    capsys: pytest.CaptureFixture[str], level: LogLevel | None, count: int
) -> None:
    assert len(logged(capsys, level)) == count


def test_messages_have_a_utc_time_and_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = logged(capsys, LogLevel.ERROR)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ERROR    a message of error", line)


def test_other_processes_of_a_machine_show_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(logged(capsys, LogLevel.DEBUG, local_rank=1)) == 1


def test_chatty_libraries_stay_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with restored_logging():
        configure_logging(LogLevel.DEBUG, 0)
        logging.getLogger("urllib3.connectionpool").debug("a detail")
    assert capsys.readouterr().err == ""


def test_logging_is_restored(root_logger: logging.Logger) -> None:
    before = (list(root_logger.handlers), root_logger.level)
    with restored_logging():
        configure_logging(LogLevel.DEBUG, 0)
        assert (list(root_logger.handlers), root_logger.level) != before
    assert (list(root_logger.handlers), root_logger.level) == before


# --- the summary ------------------------------------------------------------------------------------------------------


def result_in(folder: Path, **changes: object) -> RunResult:
    values: dict[str, object] = {
        "run_id": "2030_Model",
        "status": RunStatus.FINISHED,
        "paths": RunPaths.below(folder, "2030_Model"),
        "metrics": {"val/loss": 0.123456789, "test/accuracy": 1.0},
        "checkpoint": folder / "checkpoints" / "last.ckpt",
        "messages": ("Stopped early.",),
    }
    return RunResult(**{**values, **changes})  # type: ignore[arg-type]


def mirror_to(folder: Path, uri: object) -> None:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "mirror.json").write_text(json.dumps({"settings": {"tracking_uri": uri}}))


def test_summary_says_how_it_ended_and_how_to_go_on(tmp_path: Path) -> None:
    mirror_to(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert render_summary(result_in(tmp_path)).splitlines() == [
        "",
        "Run 2030_Model: FINISHED",
        "  Stopped early.",
        "  metrics",
        "    test/accuracy  1",
        "    val/loss       0.123457",
        f"  folder      {tmp_path}",
        f"  checkpoint  {tmp_path}/checkpoints/last.ckpt",
        f"  TensorBoard tensorboard --logdir {tmp_path}/logs/Lightning",
        f"  MLflow      mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db",
        "  resume      himl-runner <the same flags> --resume_training --src_checkpoint=2030_Model --max_epochs=<more>",
    ]


def test_a_summary_in_a_job_names_no_file_of_its_machine(tmp_path: Path) -> None:
    text = render_summary(result_in(tmp_path), is_in_azureml=True)
    assert str(tmp_path) not in text
    assert "  files       himl-download --run=2030_Model\n  resume      himl-runner" in text


@pytest.mark.parametrize("uri", [None, "", "none", 3])
def test_summary_without_mirror(tmp_path: Path, uri: object) -> None:
    mirror_to(tmp_path, uri)
    assert "MLflow" not in render_summary(result_in(tmp_path))


def test_summary_with_a_server(tmp_path: Path) -> None:
    mirror_to(tmp_path, "https://host/mlflow")
    assert "  MLflow      https://host/mlflow\n" in render_summary(result_in(tmp_path))


def test_an_interrupted_run_is_resumed_with_the_same_flags(tmp_path: Path) -> None:
    text = render_summary(result_in(tmp_path, status=RunStatus.PREEMPTED))
    assert text.endswith("<the same flags> --resume_training --src_checkpoint=2030_Model")


def test_a_run_with_unexpected_results_was_trained_to_its_end(tmp_path: Path) -> None:
    text = render_summary(result_in(tmp_path, status=RunStatus.FAILED, error=RegressionTestError("They differ.")))
    assert text.endswith("--src_checkpoint=2030_Model --max_epochs=<more>")


def test_metrics_that_are_not_finite_are_said_aloud(tmp_path: Path) -> None:
    metrics = {"val/loss": math.nan, "train/loss": math.inf, "test/accuracy": 0.5}
    assert "  WARNING: not a finite number at the end: train/loss, val/loss.\n" in render_summary(
        result_in(tmp_path, metrics=metrics)
    )
    assert "WARNING" not in render_summary(result_in(tmp_path))


def test_summary_of_a_run_that_kept_nothing(tmp_path: Path) -> None:
    text = render_summary(result_in(tmp_path, status=RunStatus.CANCELLED, checkpoint=None, metrics={}, messages=()))
    assert text.splitlines()[1] == "Run 2030_Model: CANCELLED"
    assert "resume" not in text
    assert "checkpoint" not in text


# --- tracebacks -------------------------------------------------------------------------------------------------------


USERS_MODEL = """
import json

def step():
    try:
        1 / 0
    except ZeroDivisionError:
        json.loads('{')
"""


def failing_function(tmp_path: Path) -> types.FunctionType:
    """Returns a function in a file of the user, which fails in a library that it calls."""
    file = tmp_path / "users_model.py"
    file.write_text(
        "import json\n\ndef step():\n    try:\n        1 / 0\n    except ZeroDivisionError:\n        json.loads('{')\n"
    )
    module = types.ModuleType("users_model")
    exec(compile(file.read_text(), str(file), "exec"), vars(module))
    step: types.FunctionType = module.step
    return step


def error_of(step: types.FunctionType) -> Exception:
    with pytest.raises(ValueError, match="Expecting property name") as caught:
        step()
    return caught.value


def test_traceback_shows_the_lines_of_the_user(tmp_path: Path) -> None:
    text = format_user_traceback(error_of(failing_function(tmp_path)))
    assert "users_model.py" in text
    assert "json.loads('{')" in text
    assert "ZeroDivisionError" in text
    assert "decoder.py" not in text
    assert "site-packages" not in text


def test_whole_traceback_on_request(tmp_path: Path) -> None:
    assert "decoder.py" in format_user_traceback(error_of(failing_function(tmp_path)), is_full=True)


def test_error_without_a_line_of_the_user_is_shown_whole() -> None:
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        RunPaths.below(3, "x")  # type: ignore[arg-type]
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
    assert "run_paths.py" in format_user_traceback(error)


def test_summary_of_an_inference_suggests_no_resume(tmp_path: Path) -> None:
    text = render_summary(result_in(tmp_path, checkpoint=tmp_path / "of_another_run" / "last.ckpt"))
    assert "  checkpoint  " in text
    assert "resume" not in text
