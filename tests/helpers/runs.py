"""Runs a container in this process, as the command line does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from health_ml.backends.in_process import run_in_process
from health_ml.environment import RunEnvironment
from health_ml.experiment_config import ExperimentConfig
from health_ml.lightning_container import LightningContainer
from health_ml.training.result import RunResult


def run_container(
    container: LightningContainer,
    folder: Path,
    *,
    environment: RunEnvironment | None = None,
    argv: tuple[str, ...] = (),
    **config: Any,
) -> RunResult:
    """Returns the result of a run with its outputs below a folder, and without a mirror in MLflow."""
    config.setdefault("tracking_uri", "none")
    return run_in_process(
        ExperimentConfig(**config),
        container,
        environment=environment or RunEnvironment(),
        project_root=folder,
        argv=argv,
        sources={},
    )
