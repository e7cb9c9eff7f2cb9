"""Names that users of hi-ml import from here; each is defined elsewhere in health_ml."""

from health_ml.training.callbacks.batch_time import BatchTimeCallback
from health_ml.training.callbacks.progress_bar import AzureMLProgressBar
from health_ml.training.helpers import health_ml_package_setup
from health_ml.training.loggers.azureml_logger import AzureMLLogger
from health_ml.training.logging_helpers import log_learning_rate, log_on_epoch, set_model_to_eval_mode

__all__ = [
    "AzureMLLogger",
    "AzureMLProgressBar",
    "BatchTimeCallback",
    "health_ml_package_setup",
    "log_learning_rate",
    "log_on_epoch",
    "set_model_to_eval_mode",
]
