"""Where the checkpoint of a run id may be besides on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from health_ml.checkpoints.fetch import CheckpointStore, known_stores
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.experiment_config import ExperimentConfig


def stores_for(
    parser: CheckpointParser, experiment_config: ExperimentConfig, start_directory: Path
) -> Sequence[CheckpointStore]:
    """Returns the stores to ask for a run that is not on this machine; none for a file or a URL.

    :raises WorkspaceError: If the file of the workspace that was given cannot be read.
    """
    if not parser.is_aml_run_id:
        return ()
    return known_stores(
        start_directory=start_directory,
        config_path=experiment_config.workspace_config_path,
        auth=experiment_config.auth_name,
    )
