"""The import path under which hi-ml offers the runner that trains."""

from health_ml.training.training_runner import TrainingRunner

__all__ = ["TrainingRunner"]
