"""The import path under which hi-ml offers the runner that only tests."""

from health_ml.training.eval_runner import EvalRunner

__all__ = ["EvalRunner"]
