"""``health_ml.testing.invoke``: the command line inside a test."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from health_ml import __version__
from health_ml.records.record import RunStatus
from health_ml.testing import invoke

CONTAINER = """
from health_ml.configs.hello_world import HelloWorld

class Mine(HelloWorld):
    greeting = {greeting!r}

    def __init__(self):
        super().__init__()
        self.max_epochs = 1

    def setup(self):
        print(self.greeting)
"""


def test_run_gives_its_result_and_its_record(tmp_path: Path) -> None:
    run = invoke(["--model=HelloWorld", "--max_epochs=2", "--tracking_uri=none"], folder=tmp_path)
    assert run.exit_code == 0, run.stderr
    assert run.result is not None
    assert run.result.status is RunStatus.FINISHED
    assert run.run_folder.parent == tmp_path / "outputs"
    assert (run.run_folder / "checkpoints" / "last.ckpt").is_file()
    assert run.metrics["test/mse"] == run.record.last_values["test/mse"]
    assert run.record.hyperparameters["max_epochs"] == 2
    assert f"Run {run.result.run_id}: FINISHED" in run.stdout


def test_no_run_no_result(tmp_path: Path) -> None:
    version = invoke(["--version"], folder=tmp_path)
    assert (version.exit_code, version.stdout, version.stderr) == (0, f"himl-runner {__version__}\n", "")
    assert version.result is None
    assert list(tmp_path.iterdir()) == []


def test_mistake_gives_the_exit_code_and_the_message(tmp_path: Path) -> None:
    mistake = invoke(["--model=HelloWorld", "--max_epoch=2"], folder=tmp_path)
    assert mistake.exit_code == 2
    assert "Did you mean --max_epochs?" in mistake.stderr
    with pytest.raises(AssertionError, match=r"No run was completed .exit code 2.(.|\n)*Did you mean --max_epochs"):
        _ = mistake.metrics


def test_environment_is_for_the_call_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIML_FULL_ERROR", "1")
    short = invoke(["--model="], folder=tmp_path, environment={"HIML_FULL_ERROR": None})
    full = invoke(["--model="], folder=tmp_path, environment={"HIML_FULL_ERROR": "1"})
    assert "Traceback" not in short.stderr
    assert "Traceback" in full.stderr


def test_modules_of_the_folder_are_read_again(tmp_path: Path) -> None:
    for greeting in ("first", "second"):
        folder = tmp_path / greeting
        folder.mkdir()
        (folder / "same_name.py").write_text(CONTAINER.format(greeting=greeting))
        run = invoke(["--model=same_name.Mine", "--pl_fast_dev_run=1", "--tracking_uri=none"], folder=folder)
        assert run.exit_code == 0, run.stderr
        assert run.stdout.startswith(f"{greeting}\n")
        assert "same_name" not in sys.modules


def test_module_of_the_same_name_from_elsewhere_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("elsewhere", "here"):
        (tmp_path / place / "projects").mkdir(parents=True)
        (tmp_path / place / "projects" / "mine.py").write_text(CONTAINER.format(greeting=f"from {place}"))
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    loaded = importlib.import_module("projects.mine")
    try:
        arguments = ["--model=projects.mine.Mine", "--pl_fast_dev_run=1", "--tracking_uri=none"]
        run = invoke(arguments, folder=tmp_path / "here")
        assert run.exit_code == 0, run.stderr
        assert run.stdout.startswith("from here\n")
        assert sys.modules["projects.mine"] is loaded
    finally:
        for name in ("projects.mine", "projects"):
            sys.modules.pop(name, None)


def test_working_directory_is_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = invoke(["--model=HelloWorld", "--max_epochs=1", "--tracking_uri=none"])
    assert run.run_folder.parent == tmp_path / "outputs"
    assert Path.cwd() == tmp_path
