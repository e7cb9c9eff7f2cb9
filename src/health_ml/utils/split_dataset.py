"""The import path under which hi-ml offers splits of a dataset."""

from health_ml.training.dataset_splits import DatasetSplits

__all__ = ["DatasetSplits"]
