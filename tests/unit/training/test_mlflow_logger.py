"""MLflow without the runner, on a real SQLite store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from pytorch_lightning import Trainer

from health_ml.records.record import RunRecord
from health_ml.training.loggers.mlflow_logger import HimlMLFlowLogger, get_mlflow_run_id_from_trainer
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import tiny_container


@pytest.fixture
def mlflow_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HimlMLFlowLogger]:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # Lightning's logger sets it, for the whole process
    yield HimlMLFlowLogger("experiment", tracking_uri=store, artifact_location=str(tmp_path / "artifacts"))
    mlflow.set_tracking_uri(None)


def test_parameters_can_be_logged_again(tmp_path: Path, mlflow_logger: HimlMLFlowLogger) -> None:
    mlflow_logger.log_hyperparams({"rate": 0.1, "nested": {"a": 1}, "long": 7000 * "x"})
    mlflow_logger.log_hyperparams({"rate": 0.2, "more": 1})
    mlflow_logger.log_metrics({"loss": 0.5}, step=3)
    trainer = Trainer(logger=mlflow_logger, accelerator="cpu", enable_progress_bar=False)

    run_id = get_mlflow_run_id_from_trainer(trainer)

    assert run_id == mlflow_logger.run_id
    run = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id)
    assert run.data.params == {"rate": "0.1", "nested/a": "1", "long": 6000 * "x", "more": "1"}
    assert run.data.metrics == {"loss": 0.5}


def test_run_id_comes_from_the_mirror_of_the_record(tmp_path: Path) -> None:
    record = RunRecord.create(tmp_path / "run", run_id="the_run")
    trainer, _ = create_lightning_trainer(tiny_container(tmp_path), record=record)
    assert get_mlflow_run_id_from_trainer(trainer) is None

    record.write_document("mirror", {"mlflow_run_id": "0123abc"})

    assert get_mlflow_run_id_from_trainer(trainer) == "0123abc"
    record.close()


def test_no_run_id_without_mlflow(tmp_path: Path) -> None:
    trainer, _ = create_lightning_trainer(tiny_container(tmp_path))

    assert get_mlflow_run_id_from_trainer(trainer) is None
