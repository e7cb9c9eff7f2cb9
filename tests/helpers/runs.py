"""Runs a container in this process, as the command line does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from health_ml.backends.in_process import run_in_process
from health_ml.environment import RunEnvironment
from health_ml.experiment_config import ExperimentConfig
from health_ml.lightning_container import LightningContainer
from health_ml.records.mirror_state import MirrorState
from health_ml.training.result import RunResult


def run_container(
    container: LightningContainer,
    folder: Path,
    *,
    environment: RunEnvironment | None = None,
    argv: tuple[str, ...] = (),
    has_mirror: bool = False,
    **config: Any,
) -> RunResult:
    """Returns the result of a run with its outputs below a folder, and without a mirror in MLflow.

    :param has_mirror: Start the process of the mirror, which takes longer than all the rest.
    """
    config.setdefault("tracking_uri", "none")
    with nullcontext() if has_mirror else patch("health_ml.records.mirror.start_mirror", return_value=_NoMirror()):
        return run_in_process(
            ExperimentConfig(**config),
            container,
            environment=environment or RunEnvironment(),
            project_root=folder,
            argv=argv,
            sources={},
        )


class _NoMirror:
    """A mirror that has nothing to do."""

    def finish(self, timeout_seconds: float, **_: float) -> MirrorState:
        return MirrorState(is_complete=True, message="", tracking_uri="none", mlflow_run_id=None)
