"""Training in two processes on the CPU, and inference in one of them afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from tests.helpers.process import run_himl

TWO_PROCESSES = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--tracking_uri=none")

CONTAINER = """
import os
from pathlib import Path
from torch import distributed
from health_ml.configs.hello_world import HelloWorld, HelloRegression

class Model(HelloRegression):
    def on_train_start(self):
        Path(f"train_{self.trainer.global_rank}_of_{self.trainer.world_size}").write_text(str(self.data_size()))

    def data_size(self):
        return len(self.trainer.train_dataloader)

    def on_test_start(self):
        Path(f"test_{self.trainer.global_rank}_of_{self.trainer.world_size}").write_text(
            f"{distributed.is_initialized()} {os.environ.get('LOCAL_RANK')}"
        )

class Two(HelloWorld):
    def create_model(self):
        return Model()

    def setup(self):
        assert Path("here.txt").is_file()

    def before_training_on_global_rank_zero(self):
        (self.outputs_folder / "global_zero").open("a").write("x")

    def before_training_on_all_ranks(self):
        (self.outputs_folder / "all").open("a").write("x")

class Broken(HelloWorld):
    def before_training_on_all_ranks(self):
        if os.environ.get("LOCAL_RANK") == "1":
            raise ArithmeticError("only here")
"""


@pytest.mark.slow
def test_two_processes_share_one_run_and_one_of_them_tests(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(CONTAINER)
    (tmp_path / "here.txt").write_text("")
    finished = run_himl("--model=two.Two", "--max_epochs=2", *TWO_PROCESSES, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (run,) = (tmp_path / "outputs").iterdir()
    record = read_record(run / "run")
    assert record.status.status is RunStatus.FINISHED
    assert finished.stdout.count("FINISHED") == 1
    assert {path.name for path in run.glob("t*_of_*")} == {"train_0_of_2", "train_1_of_2", "test_0_of_1"}
    assert (run / "test_0_of_1").read_text() == "False None"
    assert ((run / "global_zero").read_text(), (run / "all").read_text()) == ("x", "xx")
    epochs = [row.epoch for row in record.metrics if "train/loss" in row.metrics]
    assert epochs == [0, 1]
    tested = [row for row in record.metrics if "test/mse" in row.metrics]
    assert len(tested) == 1
    assert json.loads((run / "run" / "run.json").read_text())["run_id"] == run.name


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(CONTAINER)
    finished = run_himl("--model=two.Broken", "--max_epochs=2", *TWO_PROCESSES, cwd=tmp_path, timeout=100)
    output = finished.stdout + finished.stderr
    assert finished.returncode == 1, output
    assert "before_training_on_all_ranks failed with ArithmeticError: only here" in output
    (run,) = (tmp_path / "outputs").iterdir()
    status = read_record(run / "run").status
    assert status.status is RunStatus.FAILED
    assert status.message.startswith("The process with local rank 1 failed with exit code 1")
