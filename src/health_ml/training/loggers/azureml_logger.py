"""The logger that hi-ml's containers hand to their Trainer to log to AzureML."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.logger import _convert_params, _flatten_dict
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

from health_ml.environment import RunEnvironment, process_environment
from health_ml.errors import BackendError
from health_ml.settings import ENV_MLFLOW_TRACKING_URI, ENV_RUN_ID
from health_ml.training.loggers.mlflow_logger import HimlMLFlowLogger

_ENV_MLFLOW_RUN_ID = "MLFLOW_RUN_ID"

HYPERPARAMETERS = "hyperparams"
"""Name of the table of hyperparameters in a run of the AzureML SDK."""


class AzureMLLogger(Logger):
    """Logs to a run in AzureML, where there is one and nobody else logs to it.

    - With a ``run`` of version 1 of the AzureML SDK, it logs to that run.
    - In an AzureML job that trains without the runner, it logs to the run of the job, through MLflow.
    - In the runner it does nothing: the mirror of the record logs everything already.
    - Outside AzureML it does nothing.

    :param enable_logging_outside_azure_ml: Not possible without a ``run``.
    :param run: A run of the AzureML SDK that the caller has started and will complete.
    :param experiment_name: Accepted for hi-ml's containers, as the following ones: they describe the run that hi-ml
        would create.
    :raises BackendError: If it is to log outside AzureML and has no run.
    """

    def __init__(
        self,
        enable_logging_outside_azure_ml: bool = False,
        experiment_name: str = "azureml_logger",
        run: Any = None,
        run_name: str | None = None,
        workspace: Any = None,
        workspace_config_path: Path | None = None,
        snapshot_directory: Path | str | None = None,
    ) -> None:
        super().__init__()
        environ = process_environment()
        is_in_azureml = RunEnvironment.from_env(environ).is_in_azureml
        if enable_logging_outside_azure_ml and run is None and not is_in_azureml:
            raise BackendError(
                "AzureMLLogger(enable_logging_outside_azure_ml=True) cannot start a run in AzureML from here.",
                "Leave the argument out and give --tracking_uri, the address of your workspace's MLflow server, or "
                "hand over a run of the AzureML SDK as run=….",
            )
        self.run = run
        self._mlflow: HimlMLFlowLogger | None = None
        if run is None and is_in_azureml and ENV_RUN_ID not in environ and environ.get(_ENV_MLFLOW_RUN_ID):
            self._mlflow = HimlMLFlowLogger(
                run_id=environ[_ENV_MLFLOW_RUN_ID], tracking_uri=environ.get(ENV_MLFLOW_TRACKING_URI)
            )

    @property
    def name(self) -> str:
        """An empty text: nothing is written to a folder."""
        return ""

    @property
    def version(self) -> int:
        """Always 0."""
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs one row of metrics. In a run of the SDK, a row that has an epoch has no step."""
        if self._mlflow is not None:
            self._mlflow.log_metrics(metrics, step)
        elif self.run is not None:
            for name, value in metrics.items():
                self.run.log(name, value, step=None if "epoch" in metrics else step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Logs the hyperparameters; in a run of the SDK, as one table of names and values."""
        if self._mlflow is not None:
            self._mlflow.log_hyperparams(params)
        elif self.run is not None:
            values = _flatten_dict(_convert_params(params))
            table = {"name": list(values), "value": [str(value) for value in values.values()]}
            if values:
                self.run.log_table(HYPERPARAMETERS, table)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends what is left. The run itself is completed by whoever has started it."""
        if self.run is not None:
            self.run.flush()
