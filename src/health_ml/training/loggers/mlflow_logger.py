"""MLflow for code that trains without the runner, and the way from a Trainer to its run in MLflow."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from lightning_fabric.utilities.logger import _convert_params, _flatten_dict
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import MLFlowLogger

from health_ml.records.reader import get_mlflow_run_id
from health_ml.training.loggers.run_logger import RunLogger

LONGEST_PARAMETER = 6000
"""Number of characters that MLflow takes for the value of a parameter."""


class HimlMLFlowLogger(MLFlowLogger):
    """An MLFlowLogger for runs that are logged to more than once, like a training and its test.

    MLflow refuses to change a parameter, so those that the run has already are left alone, and values that are too
    long are cut. Inside the runner it is not needed: the mirror carries everything to MLflow.
    """

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Writes the hyperparameters that the run does not have yet."""
        run_id = self.run_id
        known = self.experiment.get_run(run_id).data.params
        for name, value in _flatten_dict(_convert_params(params)).items():
            if name not in known:
                self.experiment.log_param(run_id, name, str(value)[:LONGEST_PARAMETER])


def get_mlflow_run_id_from_trainer(trainer: Trainer) -> str | None:
    """Returns the id of the Trainer's run in MLflow, or None if it has none, or none yet.

    Inside the runner the mirror makes that run, some seconds after the start of the training.
    """
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger):
            return logger.run_id
        if isinstance(logger, RunLogger) and logger.record is not None:
            return get_mlflow_run_id(logger.record.folder)
    return None
