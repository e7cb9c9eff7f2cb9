"""From a fresh project directory to AzureML and back, as a user does it, for every kind of job."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from health_ml.testing import invoke
from tests.azureml.service import AzureML
from tests.azureml.state import Job

CONTAINER = '''
"""A line through points that come from a dataset, if there is one."""

import time
from pathlib import Path

import numpy
import param
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Subset, TensorDataset

from health_ml.lightning_container import LightningContainer


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def _loss(self, batch, name):
        loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log(name, loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def training_step(self, batch, index):
        return self._loss(batch, "train/loss")

    def validation_step(self, batch, index):
        self._loss(batch, "val/loss")

    def test_step(self, batch, index):
        self._loss(batch, "test/loss")

    def on_train_epoch_end(self):
        print("epoch", self.current_epoch, "rank", self.global_rank, "of", self.trainer.world_size, flush=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Points(LightningDataModule):
    def __init__(self, folder, fold, folds):
        super().__init__()
        x = torch.linspace(-1, 1, 40).unsqueeze(1)
        slope = float((folder / "slope.txt").read_text()) if folder else 2.0
        points = TensorDataset(x, slope * x)
        is_validation = numpy.arange(30) % folds == fold
        self.train, self.val = (Subset(points, numpy.flatnonzero(part)) for part in (~is_validation, is_validation))
        self.test = Subset(points, range(30, 40))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=5, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=5)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=5)


class Gate(Callback):
    def __init__(self, file):
        self.file = Path(file)

    def on_train_epoch_start(self, trainer, module):
        while trainer.current_epoch == 2 and not self.file.exists():
            time.sleep(0.05)


class Own(LightningContainer):
    gate = param.String(default="", doc="A file to wait for before the third epoch.")

    def __init__(self):
        super().__init__()
        self.max_epochs = 2

    def create_model(self):
        return Line()

    def get_data_module(self):
        folder = self.local_datasets[0] if self.local_datasets else None
        return Points(folder, self.crossval_index if self.crossval_count > 1 else 0, max(5, self.crossval_count))

    def get_callbacks(self):
        return [*super().get_callbacks(), *([Gate(self.gate)] if self.gate else [])]
'''
ENVIRONMENT = "name: own\ndependencies:\n- python=3.11\n- pip:\n  - torch==2.13.0\n  - pytorch-lightning\n"


@pytest.fixture
def project(project: Path) -> Path:
    (project / "own.py").write_text(CONTAINER)
    (project / "environment.yml").write_text(ENVIRONMENT)
    return project


def add_dataset(azureml: AzureML, client: Any) -> None:
    from azure.ai.ml.entities import Data

    azureml.azurite.write(azureml.workspace.default_container, "end_to_end/slope.txt", b"-3.5")
    path = "azureml://datastores/workspaceblobstore/paths/end_to_end"
    client.data.create_or_update(Data(name="slopes", version="2", path=path, type="uri_folder"))


def leaves(azureml: AzureML, job: Job) -> list[Job]:
    """Returns the trials of a job, or the job itself."""
    return [azureml.state.jobs[name] for name in job.children] or [job]


def metrics_of(azureml: AzureML, job: Job) -> dict[str, float]:
    return {entry["key"]: entry["value"] for entry in azureml.run_data(job.name)["data"]["metrics"]}


def check_inference(
    azureml: AzureML, job: Job, project: Path, *flags: str, rounding: float = 0.0, checkpoint: str = ""
) -> None:
    """Tests the checkpoint of a run in AzureML on this machine, and compares what comes out."""
    source = f"--src_checkpoint={checkpoint or job.name}"
    tested = invoke(["--model=own.Own", "--run_inference_only", source, "--tracking_uri=none", *flags], folder=project)
    assert tested.exit_code == 0, tested.stderr
    assert tested.result is not None
    expected = metrics_of(azureml, job)["test/loss"]
    assert tested.result.metrics["test/loss"] == pytest.approx(expected, rel=rounding, abs=0)


@pytest.mark.slow
def test_a_project_trains_there_and_is_tested_here(azureml: AzureML, project: Path) -> None:
    command = [sys.executable, "-m", "health_ml.runner", "--model=own.Own", "--cluster=gpu", "--wait_for_completion"]
    with azureml.executing():
        done = subprocess.run(
            [*command, "--tag=it's \"quoted\" $HOME"], cwd=project, env=dict(os.environ),
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    name = re.search(r"Submitted run (\S+) to azureml", done.stdout)
    assert name is not None
    job = azureml.state.jobs[name[1]]
    assert job.body["displayName"] == 'it\'s "quoted" $HOME'
    assert "epoch 1 rank 0 of 1" in done.stdout, "the log was followed"
    assert f"Run {job.name}: FINISHED" in done.stdout
    assert {"train/loss", "val/loss", "test/loss"} <= set(metrics_of(azureml, job))
    check_inference(azureml, job, project)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "count", "inference", "rounding"),
    [
        # Two processes add up their halves in another order than one that has all.
        (["--azure_datasets=slopes:2"], 1, ["--azure_datasets=slopes:2"], 0.0),
        (["--num_nodes=2"], 1, [], 1e-5),
        (["--different_seeds=3", "--primary_metric=val/loss"], 3, [], 0.0),
        (["--crossval_count=5"], 5, ["--crossval_count=5", "--crossval_index=4"], 0.0),
    ],
    ids=["dataset", "two nodes", "seeds", "folds"],
)
def test_other_jobs(
    azureml: AzureML, client: Any, project: Path, flags: list[str], count: int, inference: list[str], rounding: float
) -> None:
    add_dataset(azureml, client)
    with azureml.executing():
        done = invoke(["--model=own.Own", "--cluster=gpu", "--wait_for_completion", *flags], folder=project)
    assert done.exit_code == 0, done.stderr + done.stdout
    name = re.search(r"Submitted run (\S+) to azureml", done.stdout)
    assert name is not None
    runs = leaves(azureml, azureml.state.jobs[name[1]])
    assert [run.status for run in runs] == ["Completed"] * count
    losses = [metrics_of(azureml, run)["val/loss"] for run in runs]
    assert len(set(losses)) == count, "each trial is another training"
    status = invoke([f"--status={name[1]}", "--cluster=azureml"], folder=project)
    if count > 1:
        tests = [metrics_of(azureml, run)["test/loss"] for run in runs]
        for text in (done.stdout, status.stdout):
            listed = re.findall(r"^\d+ +\d+ .*FINISHED +\d+:\d\d +(\S+)$", text, re.MULTILINE)
            assert listed == [run.name for run in runs]
            assert re.search(rf"^test/loss +{count} +{statistics.fmean(tests):.6g} +", text, re.MULTILINE)
    check_inference(azureml, runs[-1], project, *inference, rounding=rounding)
    if "--primary_metric=val/loss" in flags:
        best = runs[losses.index(min(losses))]
        check_inference(azureml, best, project, checkpoint=f"{name[1]}:best")


@pytest.mark.slow
def test_a_job_that_is_preempted_in_the_middle(azureml: AzureML, project: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    azureml.cloud.grace_seconds = 20.0
    flags = ["--model=own.Own", "--cluster=low-priority", "--max_epochs=4", f"--gate={gate}"]
    submitted = invoke(flags, folder=project)
    assert submitted.exit_code == 0, submitted.stderr
    name = re.search(r"Submitted run (\S+) to azureml", submitted.stdout)
    assert name is not None
    job = azureml.state.jobs[name[1]]
    with azureml.executing():
        azureml.wait_for_log(job, "epoch 1 rank 0")
        azureml.preempt(job)
        deadline = time.monotonic() + 60
        while job.attempt == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gate.touch()
        followed = invoke([f"--attach={job.name}", "--cluster=azureml"], folder=project)
    assert followed.exit_code == 0, followed.stdout + followed.stderr
    epochs = re.findall(r"epoch (\d) rank 0 of 1", azureml.log(job))
    assert sorted(epochs) == ["0", "1", "2", "3"], "no epoch was lost or done twice"
    check_inference(azureml, job, project)


@pytest.mark.slow
def test_a_training_here_that_logs_there(azureml: AzureML, project: Path) -> None:
    trained = invoke(["--model=own.Own", "--log_from_vm", "--tag=end to end"], folder=project)
    assert trained.exit_code == 0, trained.stderr
    assert trained.result is not None
    (job,) = [job for job in azureml.state.jobs.values() if job.body.get("displayName") == "end to end"]
    assert job.status == "Completed"
    assert metrics_of(azureml, job)["test/loss"] == trained.result.metrics["test/loss"]
