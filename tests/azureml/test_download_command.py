"""``himl-download`` against the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.runner import download_main
from tests.azureml.service import AzureML
from tests.azureml.test_downloads import add_job


def test_files_of_a_run(azureml: AzureML, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_job(azureml, "fetched", {"outputs/checkpoints/last.ckpt": b"weights", "user_logs/std_log.txt": b"log"})
    assert download_main(["--run=fetched"]) == 0
    assert capsys.readouterr().out == f"fetched: 2 files in {project / 'outputs' / 'fetched'}\n"
    assert (project / "outputs" / "fetched" / "outputs" / "checkpoints" / "last.ckpt").read_bytes() == b"weights"
    flags = ["--run=tests:fetched", "--output_dir=here", "--files_to_download=checkpoints/*.ckpt", "--auth=environment"]
    assert download_main(flags) == 0
    assert (project / "here" / "checkpoints" / "last.ckpt").read_bytes() == b"weights"
    assert not (project / "here" / "user_logs").exists()


def test_a_folder_has_the_files_of_one_run(azureml: AzureML, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first_owner", "second_owner"):
        add_job(azureml, name, {"outputs/name.txt": name.encode()})
    assert download_main(["--run=first_owner", "--output_dir=mine"]) == 0
    assert download_main(["--run=first_owner", "--output_dir=mine"]) == 0
    assert download_main(["--run=second_owner", "--output_dir=mine"]) == 2
    assert "mine has the files of run first_owner" in capsys.readouterr().err
    assert (project / "mine" / "outputs" / "name.txt").read_text() == "first_owner"


def test_several_runs_have_a_folder_each(azureml: AzureML, project: Path) -> None:
    for name in ("one_run", "other_run"):
        add_job(azureml, name, {"outputs/name.txt": name.encode()})
    assert download_main(["--run=one_run,other_run", "--output_dir=all"]) == 0
    for name in ("one_run", "other_run"):
        assert (project / "all" / name / "outputs" / "name.txt").read_text() == name


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "--run is missing"),
        (["--run=x", "--fles_to_download=*"], 2, "--files_to_download"),
        (["--run=x", "stray"], 2, "stray"),
        (["--run=no_such_run"], 2, "has no run 'no_such_run'"),
        (["--run=x", "--workspace_config_path=missing.json"], 2, "missing.json"),
    ],
)
def test_bad_input(
    azureml: AzureML, project: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    assert download_main(argv) == code
    assert message in capsys.readouterr().err


def test_a_pattern_that_matches_nothing(azureml: AzureML, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_job(azureml, "without", {"outputs/a.txt": b""})
    assert download_main(["--run=without", "--files_to_download=*.ckpt"]) == 2
    assert "has no file that matches --files_to_download=*.ckpt" in capsys.readouterr().err


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert download_main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: himl-download --run=ID")
    assert "--files_to_download=" in shown
