"""Where a run writes: imported from :mod:`health_ml.deep_learning_config`, too."""

from __future__ import annotations

from pathlib import Path

from health_ml.settings import (
    CHECKPOINT_FOLDER,
    EXPERIMENT_SUMMARY_FILE,
    LIGHTNING_LOGS_FOLDER,
    LOGS_FOLDER,
    OUTPUTS_FOLDER,
    RECORD_FOLDER,
)


class RunPaths:
    """The folders of one run, all derived from two.

    On a local machine, ``outputs`` is the run folder and ``logs`` lies in it. In AzureML they are siblings in the
    job's working directory, where the service collects them.

    :param outputs: Absolute path of the outputs folder, the working directory while the model trains.
    :param logs: Absolute path of the logs folder.
    :param run_id: Id of the run.
    """

    def __init__(self, outputs: Path, logs: Path, run_id: str) -> None:
        self.outputs = outputs
        self.logs = logs
        self.run_id = run_id

    @classmethod
    def below(cls, run_folder: Path, run_id: str) -> RunPaths:
        """Returns the folders of a run on a local machine."""
        return cls(outputs=run_folder, logs=run_folder / LOGS_FOLDER, run_id=run_id)

    @classmethod
    def in_job(cls, job_folder: Path, run_id: str) -> RunPaths:
        """Returns the folders of a run in an AzureML job."""
        return cls(outputs=job_folder / OUTPUTS_FOLDER, logs=job_folder / LOGS_FOLDER, run_id=run_id)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.outputs / CHECKPOINT_FOLDER

    @property
    def record(self) -> Path:
        """Folder of the record."""
        return self.outputs / RECORD_FOLDER

    @property
    def lightning_logs(self) -> Path:
        """Folder of the TensorBoard event files."""
        return self.logs / LIGHTNING_LOGS_FOLDER

    @property
    def summary_file(self) -> Path:
        """The file that lists every parameter of the container."""
        return self.outputs / EXPERIMENT_SUMMARY_FILE

    def create(self) -> None:
        """Makes the outputs, logs and checkpoint folders."""
        for folder in (self.outputs, self.logs, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
