"""AzureMLLogger logs where there is a run to log to, and nobody else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from health_ml.errors import BackendError
from health_ml.records.mlflow_store import open_client
from health_ml.training.loggers.azureml_logger import AzureMLLogger
from tests.helpers.training import quiet_trainer
from tests.unit.training.tiny import TinyData, TinyModel


class FakeRun:
    """The part of a run of the AzureML SDK, version 1, that the logger uses."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int | None]] = []
        self.tables: dict[str, dict[str, list[Any]]] = {}
        self.is_flushed = False

    def log(self, name: str, value: float, step: int | None = None) -> None:
        self.rows.append((name, value, step))

    def log_table(self, name: str, value: dict[str, list[Any]]) -> None:
        self.tables[name] = value

    def flush(self) -> None:
        self.is_flushed = True


def train(logger: AzureMLLogger, folder: Path) -> None:
    trainer = quiet_trainer(max_epochs=1, logger=logger, log_every_n_steps=4, default_root_dir=folder)
    trainer.fit(TinyModel(), datamodule=TinyData())


def test_it_logs_to_the_run_that_it_is_given(tmp_path: Path) -> None:
    run = FakeRun()
    logger = AzureMLLogger(enable_logging_outside_azure_ml=True, run=run)
    logger.log_hyperparams({"optimizer": {"lr": 0.1}, "name": "x"})
    logger.log_metrics({"loss": 1.5}, step=3)
    train(logger, tmp_path)

    assert run.tables == {"hyperparams": {"name": ["optimizer/lr", "name"], "value": ["0.1", "x"]}}
    assert run.rows[0] == ("loss", 1.5, 3)
    assert [step for name, _, step in run.rows if name == "val/loss"] == [None]
    assert run.is_flushed


def test_in_a_job_without_the_runner_it_logs_to_the_run_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_client(uri)
    run_id = client.create_run("0").info.run_id
    for name, value in {"AZUREML_RUN_ID": run_id, "MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": uri}.items():
        monkeypatch.setenv(name, value)
    train(AzureMLLogger(), tmp_path)

    run = client.get_run(run_id)
    assert "val/loss" in run.data.metrics
    assert run.info.status == "RUNNING", "the job completes its run itself"


def test_in_the_runner_the_mirror_logs_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZUREML_RUN_ID", "MLFLOW_RUN_ID", "HIML_RUN_ID"):
        monkeypatch.setenv(name, "some_run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    logger = AzureMLLogger()
    logger.log_metrics({"loss": 1.0}, step=1)  # would wait for the server, and fail
    logger.finalize("success")
    assert logger._mlflow is None


def test_outside_azureml_it_says_that_it_cannot_log(tmp_path: Path) -> None:
    train(AzureMLLogger(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BackendError, match=r"cannot start a run in AzureML from here.* --tracking_uri"):
        AzureMLLogger(enable_logging_outside_azure_ml=True)
