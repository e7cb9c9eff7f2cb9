"""The import path under which hi-ml offers the logging levels of other libraries."""

from health_ml.training.helpers import health_ml_package_setup

__all__ = ["health_ml_package_setup"]
