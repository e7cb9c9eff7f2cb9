"""The runner inside jobs that the stand-in executes: nodes, attempts, trials, data, and what reaches AzureML."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.azureml.service import AzureML
from tests.azureml.state import Job

Script = Callable[..., Any]

TINY = """
import time
from pathlib import Path
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset
from health_ml.lightning_container import LightningContainer

import param


class Model(LightningModule):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        loss = ((self.layer(batch[0]) - batch[1]) ** 2).mean()
        self.log("train/loss", loss, on_epoch=True, on_step=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", ((self.layer(batch[0]) - batch[1]) ** 2).mean(), sync_dist=True)

    def test_step(self, batch, index):
        self.log("test/loss", ((self.layer(batch[0]) - batch[1]) ** 2).mean())

    def on_train_epoch_end(self):
        print("epoch", self.current_epoch, "rank", self.global_rank, "of", self.trainer.world_size, flush=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Data(LightningDataModule):
    def loader(self):
        x = torch.linspace(-1, 1, 16).unsqueeze(1)
        return DataLoader(TensorDataset(x, 2 * x), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = loader


class Tiny(LightningContainer):
    rate = param.Number(default=0.1)
    gate = param.String(default="", doc="A file to wait for before the second epoch.")

    def setup(self):
        for folder in self.local_datasets:
            print("data", sorted(path.name for path in Path(folder).iterdir()), flush=True)

    def create_model(self):
        return Model(self.rate)

    def get_data_module(self):
        return Data()

    def get_callbacks(self):
        from pytorch_lightning import Callback

        container = self

        class Gate(Callback):
            def on_train_epoch_start(self, trainer, module):
                while container.gate and trainer.current_epoch == 2 and not Path(container.gate).exists():
                    time.sleep(0.05)

        return [*super().get_callbacks(), Gate()]
"""


@pytest.fixture
def submit(azureml: AzureML, client: Any, script: Script, tmp_path: Path) -> Callable[..., Job]:
    """Returns a function that submits a job which runs the runner on a tiny model."""

    def make(*flags: str, **options: Any) -> Job:
        words = ["python", "-m", "health_ml.runner", "--model=tiny.Tiny", "--max_num_gpus=0", *flags]
        line = options.pop("line", shlex.join(words))
        sweep = options.pop("sweep", None)
        job = script("", command=line, experiment_name="tests", **options)
        (tmp_path / "code" / "tiny.py").write_text(TINY)
        job = sweep(job) if sweep else job
        return azureml.state.jobs[client.jobs.create_or_update(job).name]

    return make


def run_data(azureml: AzureML, job: Job) -> tuple[dict[str, float], dict[str, str], dict[str, str]]:
    """Returns the last metrics, the parameters and the tags of a run in AzureML."""
    data = azureml.run_data(job.name)["data"]
    metrics, params, tags = (
        {entry["key"]: entry["value"] for entry in data.get(kind, [])} for kind in ("metrics", "params", "tags")
    )
    return metrics, params, tags


def metric_points(azureml: AzureML, job: Job, name: str) -> list[tuple[int, float]]:
    """Returns step and value of everything that was logged for a metric."""
    run_id = azureml.cloud.mlflow._mlflow_ids[job.name]
    path = f"/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={name}"
    return [
        (int(entry.get("step", 0)), entry["value"]) for entry in azureml.cloud.mlflow.ask("GET", path).body["metrics"]
    ]


@pytest.mark.slow
def test_a_job_reads_its_data_and_logs_to_its_run_while_the_service_stumbles(
    azureml: AzureML, client: Any, submit: Callable[..., Job]
) -> None:
    from azure.ai.ml import Input

    for number in range(2):
        azureml.azurite.write(azureml.workspace.default_container, f"in_job/{number}/file_{number}.txt", b"x")
    root = "azureml://datastores/workspaceblobstore/paths/in_job"
    inputs = {f"INPUT_{number}": Input(path=f"{root}/{number}", type="uri_folder") for number in range(2)}
    limited = azureml.misbehave("POST", "*/runs/log-batch", times=3, status=429, retry_after=1)
    broken = azureml.misbehave("GET", "*/runs/get", times=1, close=True)
    line = "python -m health_ml.runner --model=tiny.Tiny --max_epochs=3 --max_num_gpus=0 --rate=0.05 --tag='my run' "
    line += "--azure_datasets=a,b  # ${{inputs.INPUT_0}} ${{inputs.INPUT_1}}"
    job = submit(line=line, inputs=inputs)
    azureml.run_pending_jobs()
    log = azureml.log(job)
    assert job.status == "Completed", log
    assert "data ['file_0.txt']\ndata ['file_1.txt']\n" in log
    assert (limited.met, broken.met) == (3, 1)
    metrics, params, tags = run_data(azureml, job)
    assert {"train/loss_epoch", "val/loss", "test/loss"} <= set(metrics)
    assert params["rate"] == "0.05"
    assert metrics["hyperparameters/rate"] == 0.05
    assert metrics["hyperparameters/effective_random_seed"] == 42
    assert metrics["hyperparameters/max_epochs"] == 3
    assert "hyperparameters/l_rate" not in metrics
    assert (tags["tag"], tags["himl.status"]) == ("my run", "FINISHED")
    assert len(metric_points(azureml, job, "val/loss")) == 3
    artifacts = azureml.artifacts(job)
    (console,) = [name for name in artifacts if name.startswith("outputs/console_logs/logging_")]
    assert console.endswith("_node0_rank0.txt")
    assert b"epoch 2 rank 0 of 1" in artifacts[console]
    assert {"outputs/checkpoints/last.ckpt", "outputs/run/metrics.jsonl", "outputs/experiment_summary.txt"} <= set(
        artifacts
    )
    assert any(name.startswith("logs/Lightning/events") for name in artifacts)
    assert not any(name.startswith("run/") for name in artifacts), "the record is among the outputs already"
    mirror = json.loads(artifacts["outputs/run/mirror.json"])
    assert mirror["is_complete"], mirror["message"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Mpi", "PyTorch"])
def test_two_nodes_train_together(azureml: AzureML, submit: Callable[..., Job], kind: str) -> None:
    import azure.ai.ml

    distribution = getattr(azure.ai.ml, f"{kind}Distribution")(process_count_per_instance=1)
    job = submit("--max_epochs=1", "--num_nodes=2", "--tracking_uri=none", distribution=distribution, instance_count=2)
    azureml.run_pending_jobs()
    log = azureml.log(job)
    assert job.status == "Completed", log
    assert "epoch 0 rank 0 of 2" in log
    assert "epoch 0 rank 1 of 2" in log
    consoles = [name for name in azureml.artifacts(job) if "console_logs" in name]
    assert sorted(name.partition("_node")[2] for name in consoles) == ["0_rank0.txt", "1_rank0.txt"]


@pytest.mark.slow
def test_a_preempted_job_continues_from_what_the_service_has_collected(
    azureml: AzureML, submit: Callable[..., Job]
) -> None:
    azureml.cloud.grace_seconds = 0.2  # the job is killed in the middle
    gate = azureml.folder / "gate of the third epoch"
    job = submit("--max_epochs=4", f"--gate={gate}", compute="low-priority")
    with azureml.executing():
        azureml.wait_for_log(job, "epoch 1 rank 0")
        deadline = time.monotonic() + 60
        while b'"epoch":1' not in azureml.artifacts(job).get("outputs/run/metrics.jsonl", b""):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(1)
        azureml.preempt(job)
        while job.attempt == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        gate.touch()
    gate.unlink()
    assert job.status == "Completed", azureml.log(job)
    artifacts = azureml.artifacts(job)
    second = artifacts["user_logs/retry_001/std_log.txt"].decode()
    assert "epoch 0 rank 0" not in second
    assert "epoch 1 rank 0" not in second
    assert "epoch 2 rank 0" in second
    assert "epoch 3 rank 0" in second
    rows = [json.loads(line) for line in artifacts["outputs/retry_001/run/metrics.jsonl"].splitlines()]
    assert {row["attempt"] for row in rows} == {0, 1}
    assert [row["epoch"] for row in rows if "val/loss" in row["metrics"]] == [0, 1, 2, 3]
    assert len(metric_points(azureml, job, "val/loss")) == 4, "nothing is doubled, nothing is missing"
    assert len([name for name in artifacts if "/console_logs/" in name]) == 2


@pytest.mark.slow
def test_the_trials_of_a_sweep_are_named_and_tagged(azureml: AzureML, client: Any, submit: Callable[..., Job]) -> None:
    from azure.ai.ml.sweep import Choice

    def as_sweep(job: Any) -> Any:
        sweep = job(random_seed=Choice([3, 4])).sweep(
            sampling_algorithm="grid", primary_metric="val/loss", goal="minimize", max_total_trials=2
        )
        sweep.compute, sweep.experiment_name = "gpu", "tests"
        sweep.tags = {"tag": "of the sweep", "build_number": "7", "_aml_system_x": "y"}
        return sweep

    line = "python -m health_ml.runner --model=tiny.Tiny --max_num_gpus=0 --max_epochs=1 "
    job = submit(line=line + "--random_seed=${{inputs.random_seed}}", inputs={"random_seed": 0}, sweep=as_sweep)
    azureml.run_pending_jobs()
    children = [azureml.state.jobs[name] for name in job.children]
    assert [child.status for child in children] == ["Completed"] * 2, azureml.log(children[0])
    for seed, child in zip((3, 4), children, strict=True):
        _, _, tags = run_data(azureml, child)
        assert child.body["displayName"] == f"Tiny seed {seed}"
        assert tags["effective_random_seed"] == str(seed)
        assert tags["run_recovery_id"] == f"Tiny:{child.name}"
        assert tags["build_number"] == "7"
        assert "_aml_system_x" not in tags
