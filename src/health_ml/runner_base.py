"""The import path under which hi-ml offers the base class of the runners."""

from health_ml.training.runner_base import RunnerBase

__all__ = ["RunnerBase"]
