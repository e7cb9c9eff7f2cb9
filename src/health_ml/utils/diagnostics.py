"""The import path under which hi-ml offers callbacks that watch a training."""

from health_ml.training.callbacks.batch_time import BatchTimeCallback
from health_ml.training.callbacks.diagnostics import TrainingDiagnosticsCallback
from health_ml.training.callbacks.diagnostics import TrainingDiagnosticsCallback as TrainingDiagnoticsCallback

__all__ = ["BatchTimeCallback", "TrainingDiagnosticsCallback", "TrainingDiagnoticsCallback"]
