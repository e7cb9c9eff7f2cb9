import sys
from pathlib import Path

import pytest

from health_ml.cli.console_log import console_log
from health_ml.environment import RunEnvironment
from health_ml.runner import main


def test_what_is_printed_is_kept_with_node_and_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with console_log(tmp_path, RunEnvironment(node_rank=1, local_rank=2)):
        print("out ü")
        print("err", file=sys.stderr, end="")
        assert not sys.stdout.isatty()
    assert (sys.stdout, sys.stderr) == before
    (log,) = (tmp_path / "outputs" / "console_logs").iterdir()
    assert log.name.startswith("logging_20")
    assert log.name.endswith("_node1_rank2.txt")
    assert log.read_text() == "out ü\nerr"
    assert capsys.readouterr().err == "err"


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outputs").write_text("a file")
    with console_log(tmp_path, RunEnvironment()):
        print("still here")
    assert capsys.readouterr().out == "still here\n"


def test_a_job_in_azureml_keeps_its_errors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AZUREML_RUN_ID", "job")
    assert main(["--model=NoSuchModel"]) == 2
    (log,) = (tmp_path / "outputs" / "console_logs").iterdir()
    assert "NoSuchModel" in log.read_text()
    assert log.read_text() == capsys.readouterr().err
