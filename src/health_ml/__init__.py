"""health_ml trains PyTorch Lightning containers: on this machine, on AzureML and on batch clusters.

Importing the package loads neither torch nor Lightning, MLflow or Azure: each is loaded by the part that needs it.
"""

from health_ml.version import __version__

__all__ = ["__version__"]
