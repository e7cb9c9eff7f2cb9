"""What a signal does to a training, and how the run continues afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule

from health_ml.checkpoints.inspect import read_progress
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from tests.helpers.containers import LineContainer, LineModel
from tests.helpers.runs import run_container


class SignalModel(LineModel):
    """Sends itself a signal at a given place; counts what it does."""

    def __init__(self, place: str, number: int) -> None:
        super().__init__()
        self.place = place
        self.number = number
        self.counts = {"train": 0, "val": 0, "test": 0}

    def _reach(self, place: str) -> None:
        if place == self.place:
            os.kill(os.getpid(), self.number)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.counts["train"] += 1
        self._reach(f"train {self.current_epoch} {batch_idx}")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.counts["val"] += 1
        self._reach(f"val {self.current_epoch} {batch_idx}")
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.counts["test"] += 1
        self._reach(f"test {batch_idx}")
        super().test_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self._reach(f"epoch end {self.current_epoch}")


class SignalContainer(LineContainer):
    def __init__(self, place: str = "", number: int = signal.SIGTERM, **kwargs: Any) -> None:
        super().__init__(**{"max_epochs": 3, **kwargs})
        self.place = place
        self.number = number

    def create_model(self) -> LightningModule:
        return SignalModel(self.place, self.number)

    def setup(self) -> None:
        if self.place == "setup":
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("place", "steps", "counts_after"),
    [
        pytest.param("train 0 0", 1, {"train": 11, "val": 12}, id="first batch"),
        pytest.param("train 1 1", 6, {"train": 6, "val": 8}, id="middle of an epoch"),
        pytest.param("train 1 3", 8, {"train": 4, "val": 8}, id="last batch of an epoch: validated after the resume"),
        pytest.param("val 1 0", 8, {"train": 4, "val": 8}, id="first batch of a validation: all of it is repeated"),
        pytest.param("val 1 2", 8, {"train": 4, "val": 8}, id="middle of a validation: all of it is repeated"),
        pytest.param("val 1 3", 8, {"train": 4, "val": 8}, id="last batch of a validation"),
        pytest.param("epoch end 1", 8, {"train": 4, "val": 4}, id="end of an epoch"),
    ],
)
def test_stops_with_a_checkpoint_and_continues_there(
    place: str, steps: int, counts_after: dict[str, int], tmp_path: Path
) -> None:
    result = run_container(SignalContainer(place), tmp_path)
    assert (result.status, result.exit_code) == (RunStatus.PREEMPTED, 128 + signal.SIGTERM)
    assert read_record(result.paths.record).status.status is RunStatus.PREEMPTED
    assert result.checkpoint == result.paths.checkpoints / "last.ckpt"
    assert read_progress(result.checkpoint).global_step == steps

    container = SignalContainer(resume_training=True, src_checkpoint=CheckpointParser(result.run_id))
    resumed = run_container(container, tmp_path)
    assert resumed.status is RunStatus.FINISHED
    counts = container.model.counts
    assert {"train": counts["train"], "val": counts["val"]} == counts_after
    assert read_progress(resumed.paths.checkpoints / "last.ckpt").global_step == 12
    assert set(resumed.metrics) == {"train/loss", "val/loss", "test/loss"}


def test_validation_after_a_resume_covers_all_batches(tmp_path: Path) -> None:
    first = run_container(SignalContainer("val 2 2"), tmp_path)
    container = SignalContainer(resume_training=True, src_checkpoint=CheckpointParser(first.run_id))
    resumed = run_container(container, tmp_path)
    unbroken = run_container(SignalContainer(), tmp_path)
    assert resumed.metrics["val/loss"] == pytest.approx(unbroken.metrics["val/loss"])
    assert resumed.metrics["test/loss"] == pytest.approx(unbroken.metrics["test/loss"])


@pytest.mark.parametrize("place", ["setup", "test 1"])
def test_where_there_is_nothing_to_save_the_run_ends_at_once(place: str, tmp_path: Path) -> None:
    folder = Path.cwd()
    result = run_container(SignalContainer(place, signal.SIGINT), tmp_path)
    assert (result.status, result.exit_code) == (RunStatus.CANCELLED, 130)
    assert read_record(result.paths.record).status.message == "The run was asked to stop by SIGINT."
    assert Path.cwd() == folder


# --- in a process of its own ------------------------------------------------------------------------------------------

SLOW = """
import time
from tests.helpers.containers import LineContainer, LineModel

class SlowModel(LineModel):
    def training_step(self, batch, batch_idx):
        time.sleep(0.05)
        return super().training_step(batch, batch_idx)

class Slow(LineContainer):
    def create_model(self):
        return SlowModel()
"""
REPOSITORY = Path(__file__).resolve().parents[2]


def start_slow_run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Returns a process that trains until it is stopped, once it has written its first metrics."""
    (folder / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "health_ml.runner", "--model=slow.Slow", "--max_epochs=10000", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(REPOSITORY)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not list(folder.glob("outputs/*/run/metrics.jsonl")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[0])
        time.sleep(0.1)
    return process


def test_ctrl_c_ends_the_process_with_130(tmp_path: Path) -> None:
    process = start_slow_run(tmp_path)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    (run,) = (tmp_path / "outputs").iterdir()
    assert read_record(run / "run").status.status is RunStatus.CANCELLED
    assert read_progress(run / "checkpoints" / "last.ckpt").global_step > 0
    assert re.search(r"Run \S+Slow: CANCELLED", output)
    assert f"  checkpoint  {run}/checkpoints/last.ckpt" in output
    assert re.search(rf"  resume  .* --resume_training --src_checkpoint={run.name}$", output, re.MULTILINE)


@pytest.mark.slow
def test_sigterm_for_one_of_two_processes_stops_both_after_the_same_batch(tmp_path: Path) -> None:
    process = start_slow_run(tmp_path, "--trainer.accelerator=cpu", "--trainer.devices=2", "--tracking_uri=none")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    (run,) = (tmp_path / "outputs").iterdir()
    assert read_record(run / "run").status.status is RunStatus.PREEMPTED
    assert read_progress(run / "checkpoints" / "last.ckpt").global_step > 0
