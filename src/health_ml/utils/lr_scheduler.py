"""The import path under which hi-ml offers the learning-rate scheduler."""

from health_ml.optim.lr_scheduler import SchedulerWithWarmUp

__all__ = ["SchedulerWithWarmUp"]
