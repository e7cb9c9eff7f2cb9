"""The import path under which hi-ml offers its Lightning loggers."""

from health_ml.training.loggers.storing_logger import StoringLogger

__all__ = ["StoringLogger"]
