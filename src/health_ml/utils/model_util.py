"""The import path under which hi-ml offers the optimizer of a container's flags."""

from health_ml.optim.optimizers import create_optimizer

__all__ = ["create_optimizer"]
