"""The import path under which hi-ml offers its Lightning loggers."""

from health_ml.training.loggers.mlflow_logger import HimlMLFlowLogger, get_mlflow_run_id_from_trainer
from health_ml.training.loggers.storing_logger import StoringLogger

__all__ = ["HimlMLFlowLogger", "StoringLogger", "get_mlflow_run_id_from_trainer"]
