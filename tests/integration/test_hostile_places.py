"""Odd names, folders that cannot be written, and an environment that others have filled with nonsense."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.testing import invoke
from tests.helpers.process import run_himl

HELLO = ("--model=HelloWorld", "--max_epochs=1", "--max_num_gpus=0")
UNTRACKED = (*HELLO, "--tracking_uri=none")


@pytest.mark.parametrize(
    "name",
    ["a b'c\"d", "new\nline", "Ünïcødé 😀", "x" * 255, "-rf", "$(touch x)`;&|", "%s{}%20?#x", "\udcff"],
    ids=["quotes", "newline", "unicode", "long", "flag", "shell", "url", "no-text"],
)
def test_a_project_may_have_any_name(tmp_path: Path, name: str) -> None:
    project = tmp_path / name
    project.mkdir()
    done = invoke(UNTRACKED, folder=project)
    assert done.exit_code == 0, done.stderr
    run_id = done.run_folder.name
    inference = ["--model=HelloWorld", "--tracking_uri=none", "--run_inference_only", f"--src_checkpoint={run_id}"]
    again = invoke(inference, folder=project)
    assert again.metrics["test/mse"] == done.metrics["test/mse"]
    assert os.listdir(tmp_path) == [name]


def test_mlflow_finds_a_store_below_an_odd_name(tmp_path: Path) -> None:
    project = tmp_path / "100% of 'it' #1 é"
    project.mkdir()
    done = invoke(HELLO, folder=project, environment={"MLFLOW_TRACKING_URI": None})
    assert done.exit_code == 0, done.stderr
    assert (project / "mlflow.db").is_file()
    assert 'is_complete": true' in (done.run_folder / "run" / "mirror.json").read_text()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HIML_ATTEMPT", "abc", "have to be whole numbers from 0: HIML_ATTEMPT='abc'"),
        ("HIML_ATTEMPT", "9" * 5000, "have to be whole numbers from 0"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK='-1'"),
        ("HIML_RUN_ID", "../../x", "AZUREML_RUN_ID='../../x' is no name of a run"),
        ("HIML_RUN_ID", "a\nb", "is no name of a run"),
        ("AZUREML_RUN_ID", "x" * 300, "is no name of a run"),
        ("HIML_RUN_FOLDER", "/dev/null", "Cannot write the results of the run to /dev/null"),
        ("HIML_RUN_FOLDER", "x" * 300, "File name too long"),
        ("HIML_START_DIRECTORY", "/no/such/folder", "HIML_START_DIRECTORY='/no/such/folder' is no folder"),
        ("HIML_PROJECT_ROOT", "/dev/null", "HIML_PROJECT_ROOT='/dev/null' is no folder"),
        ("MLFLOW_TRACKING_URI", "nonsense://x", "MLflow has no store of the kind 'nonsense'"),
    ],
)
def test_variables_that_cannot_be_true_are_named(tmp_path: Path, name: str, value: str, message: str) -> None:
    done = invoke(HELLO, folder=tmp_path, environment={name: value})
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


NONSENSE = {
    "PL_TRAINER_MAX_STEPS": "nonsense",
    "PL_TRAINER_OVERFIT_BATCHES": "1",
    "PL_GLOBAL_SEED": "nonsense",
    "PL_SEED_WORKERS": "nonsense",
    "HIML_FULL_ERROR": "nonsense",
    "HIML_EXPERIMENT_NAME": "\n'\"/../x",
    "HIML_FAN_OUT_FOLDER": "",
    "WORLD_SIZE": "",
    "TORCH_DISTRIBUTED_DEBUG": "nonsense",
    "COLUMNS": "nonsense",
    "TERM": "nonsense",
    "TZ": "nonsense",
    "XDG_STATE_HOME": "/proc/nothing",
    "XDG_CACHE_HOME": "relative",
}


def test_nonsense_in_other_variables_changes_nothing(tmp_path: Path) -> None:
    expected = invoke(UNTRACKED, folder=tmp_path)
    done = invoke(UNTRACKED, folder=tmp_path, environment=NONSENSE)
    assert done.exit_code == 0, done.stderr
    assert done.metrics == expected.metrics
    assert "Ignored: PL_TRAINER_MAX_STEPS, PL_TRAINER_OVERFIT_BATCHES. Give --trainer.<argument>" in done.stderr


def test_variables_of_python_and_mlflow(tmp_path: Path) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('PYTHONSTARTUP was run')\n")
    project = tmp_path / "é"
    project.mkdir()
    hostile = {
        "PYTHONSTARTUP": str(trap),
        "PYTHONWARNINGS": "nonsense",
        "PYTHONIOENCODING": "ascii",
        "PYTHONBREAKPOINT": "os.abort",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "nonsense",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "nonsense",
        "MLFLOW_RUN_ID": "nonsense",
        "MLFLOW_EXPERIMENT_ID": "nonsense",
    }
    done = run_himl(*HELLO, f"--tracking_uri=sqlite:///{project}/mlflow.db", cwd=project, environment=hostile)
    assert done.returncode == 0, done.stderr
    assert "FINISHED" in done.stdout
    assert "\\xe9" in done.stdout
    assert "Traceback" not in done.stderr


def test_nothing_is_writable_for_everybody_even_if_the_umask_allows_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        done = invoke([*HELLO, "--output_to=results"], folder=tmp_path, environment={"MLFLOW_TRACKING_URI": None})
        after = os.umask(0)
    finally:
        os.umask(before)
    assert done.exit_code == 0, done.stderr
    assert after == 0
    loose = [path for path in tmp_path.rglob("*") if path.lstat().st_mode & stat.S_IWOTH and not path.is_symlink()]
    assert loose == []
    assert (tmp_path / "mlflow.db").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        done = invoke(UNTRACKED, folder=tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert done.exit_code == 2
    assert f"Cannot write the results of the run to {tmp_path}/outputs: Permission denied." in done.stderr


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_a_file_system_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    done = invoke([*UNTRACKED, "--output_to=/proc/self/results"], folder=tmp_path)
    assert done.exit_code == 2
    assert "Cannot write the results of the run to /proc/self/results" in done.stderr
    assert "choose another folder with --output_to" in done.stderr


def test_a_project_that_cannot_be_written_trains_elsewhere(tmp_path: Path) -> None:
    """The results go to --output_to; what cannot be written beside the code is said once."""
    project, results = tmp_path / "project", tmp_path / "results"
    project.mkdir()
    (project / "outputs").write_text("no folder")
    done = invoke([*UNTRACKED, f"--output_to={results}"], folder=project)
    assert done.exit_code == 0, done.stderr
    assert read_record(done.run_folder).status.status is RunStatus.FINISHED
