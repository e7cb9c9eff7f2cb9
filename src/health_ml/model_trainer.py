"""The import path under which hi-ml offers the Lightning Trainer of a container."""

from health_ml.training.trainer import create_lightning_trainer

__all__ = ["create_lightning_trainer"]
