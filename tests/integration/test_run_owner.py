"""A folder that the user has fixed belongs to one run: another one is refused before it has written anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.lightning_container import LightningContainer
from health_ml.settings import ENV_RUN_FOLDER
from health_ml.testing import Invocation, invoke
from tests.helpers.disk import largest_file

OTHER = """
from health_ml.configs.hello_world import HelloWorld

class Other(HelloWorld):
    pass
"""


def run(folder: Path, *flags: str, run_folder: str = "outputs/job") -> Invocation:
    environment = {ENV_RUN_FOLDER: run_folder}
    return invoke(["--tracking_uri=none", *flags], folder=folder, environment=environment)


def content(folder: Path) -> dict[str, bytes]:
    """Returns all files below a folder, without what Python notes when it imports a model."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished training in ``outputs/job``, which no test may change."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "other.py").write_text(OTHER)
    finished = run(folder, "--model=HelloWorld", "--max_epochs=1")
    assert finished.exit_code == 0, finished.stderr
    return folder


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--model=other.Other", "--max_epochs=3"], "a training of Other"),
        (
            ["--model=HelloWorld", "--run_inference_only", "--src_checkpoint=outputs/job/checkpoints/last.ckpt"],
            "an inference of HelloWorld",
        ),
        (
            ["--model=HelloWorld", "--mode=eval_full", "--src_checkpoint=outputs/job/checkpoints/last.ckpt"],
            "an evaluation of HelloWorld",
        ),
        (["--model=other.Other", "--simulate_preemption=step:1"], "a training of Other"),
    ],
    ids=["model", "inference", "evaluation", "simulated preemption"],
)
def test_another_run_in_the_folder_is_refused_and_changes_nothing(project: Path, flags: list[str], what: str) -> None:
    before = content(project)
    refused = run(project, *flags)
    assert refused.exit_code == 2, refused.stderr
    folder = project / "outputs" / "job"
    assert (
        f"The run folder {folder} belongs to a training of HelloWorld (FINISHED), and this command is {what}. Nothing "
        f"was changed there. Set {ENV_RUN_FOLDER} to another folder, or unset it: then every run gets a new one."
    ) in refused.stderr
    assert content(project) == before


def test_a_training_in_the_folder_of_an_inference_is_refused(project: Path) -> None:
    checkpoint = "--src_checkpoint=outputs/job/checkpoints/last.ckpt"
    inference = ["--model=HelloWorld", "--run_inference_only", checkpoint]
    for _ in range(2):  # it may be repeated
        done = run(project, *inference, run_folder="outputs/inference")
        assert done.exit_code == 0, done.stderr
    refused = run(project, "--model=HelloWorld", "--max_epochs=1", run_folder="outputs/inference")
    assert refused.exit_code == 2
    assert "belongs to an inference of HelloWorld (FINISHED), and this command is a training of" in refused.stderr


def test_a_single_run_in_the_folder_of_a_fan_out_is_refused(tmp_path: Path) -> None:
    fan_out = tmp_path / "outputs" / "fan_out"
    (fan_out / "run").mkdir(parents=True)
    for name in ("status", "trials"):
        (fan_out / "run" / f"{name}.jsonl").touch()
    refused = run(tmp_path, "--model=HelloWorld", run_folder=str(fan_out))
    assert (refused.exit_code, "belongs to a fan-out" in refused.stderr) == (2, True), refused.stderr
    assert sorted(content(tmp_path)) == ["outputs/fan_out/run/status.jsonl", "outputs/fan_out/run/trials.jsonl"]


@pytest.mark.parametrize("run_folder", ["/", ".", "data"])
def test_a_folder_that_holds_something_else_is_refused(run_folder: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for place in (tmp_path, tmp_path / "data"):
        (place / "table.csv").write_text("1,2\n")
    before = sorted(content(tmp_path))
    refused = run(tmp_path, "--model=HelloWorld", "--max_epochs=1", run_folder=run_folder)
    assert refused.exit_code == 2, refused.stderr
    expected = "the root of the file system" if run_folder == "/" else "is not the folder of a run: it holds"
    assert expected in refused.stderr
    assert sorted(content(tmp_path)) == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["table.csv"]


def test_a_folder_with_what_batch_systems_put_there_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    (folder / "lost+found").mkdir(parents=True)
    for name in ("slurm-17.out", "job.log", ".snapshot"):
        (folder / name).touch()
    (folder / "checkpoints").mkdir()  # another node of the same run was faster
    done = run(tmp_path, "--model=HelloWorld", "--max_epochs=1", run_folder="job")
    assert done.exit_code == 0, done.stderr


def test_what_other_processes_of_this_package_fix_is_right(tmp_path: Path) -> None:
    from health_ml.backends.run_owner import check_run_folder
    from health_ml.environment import RunEnvironment
    from health_ml.experiment_config import ExperimentConfig

    (tmp_path / "table.csv").touch()
    environment = RunEnvironment(rank=1, run_folder=tmp_path, start_directory=tmp_path)
    check_run_folder(ExperimentConfig(), LightningContainer(), environment=environment, start_directory=tmp_path)


def test_a_full_disk_below_the_folder_is_named(tmp_path: Path) -> None:
    with largest_file(0):
        done = run(tmp_path, "--model=HelloWorld", "--max_epochs=1", run_folder="outputs/full")
    assert done.exit_code == 2, done.stderr
    assert f"Cannot write the results of the run to {tmp_path}/outputs/full" in done.stderr
    assert f"choose another folder with {ENV_RUN_FOLDER}" in done.stderr
