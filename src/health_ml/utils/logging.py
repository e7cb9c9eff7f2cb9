"""The import path under which hi-ml offers the logger, the progress bar and what a model logs with."""

from health_ml.training.callbacks.progress_bar import AzureMLProgressBar
from health_ml.training.helpers import elapsed_timer, logging_section
from health_ml.training.loggers.azureml_logger import AzureMLLogger
from health_ml.training.logging_helpers import log_learning_rate, log_on_epoch

__all__ = [
    "AzureMLLogger",
    "AzureMLProgressBar",
    "elapsed_timer",
    "log_learning_rate",
    "log_on_epoch",
    "logging_section",
]
