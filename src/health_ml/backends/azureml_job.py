"""What a run inside an AzureML job does besides training: it finds out which attempt and which trial it is.

A low-priority job that lost its nodes starts again on an empty disk. What it needs to go on, the checkpoints and the
record, the service has collected; it is put back before the run begins.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from health_ml.azure.downloads import StoredFiles
from health_ml.azure.history import RunFacts, RunHistory
from health_ml.azure.job_files import FormerAttempts, once
from health_ml.azure.rest import Patience, ServiceError
from health_ml.checkpoints.inspect import verify
from health_ml.checkpoints.recovery import recovery_folder
from health_ml.deep_learning_config import RunPaths
from health_ml.environment import RunEnvironment
from health_ml.errors import CheckpointError
from health_ml.lightning_container import LightningContainer
from health_ml.records.lines import read_rows
from health_ml.records.mirror_state import continue_on_other_disk
from health_ml.records.reader import latest_status
from health_ml.settings import CHECKPOINT_FOLDER, CHECKPOINT_SUFFIX, ENV_ATTEMPT, RECORD_FOLDER, RECORD_STATUS_FILE

logger = logging.getLogger(__name__)

NAME_PATIENCE = Patience(connect_seconds=5, read_seconds=10, attempts=2)
"""The name of a trial is worth some seconds, not a training that does not start."""
_ACCESS_STATUSES = (401, 403, 404, 405)
"""What the service answers if it is not a matter of time."""
_OF_THE_SERVICE = ("_aml_system", "mlflow.", "azureml.", "hyperparameters", "himl.")


@dataclass(frozen=True)
class JobFacts:
    """What a run in a job knows about itself.

    :param attempt: How often the run was started again.
    :param run: What run history knows about it, or None if that could not be asked.
    :param parent: The sweep that it is a trial of, or None.
    """

    attempt: int
    run: RunFacts | None = None
    parent: RunFacts | None = None

    def tags(self, experiment: str) -> dict[str, str]:
        """Returns the tags that a trial has besides its own: those of its sweep, and the id to find it by."""
        if self.run is None or self.parent is None:
            return {}
        inherited = {
            name: value for name, value in self.parent.tags.items() if value and not name.startswith(_OF_THE_SERVICE)
        }
        return {**inherited, "run_recovery_id": f"{experiment}:{self.run.run_id}"}

    def display_name(self, container: LightningContainer) -> str:
        """Returns the name to display for a trial: which fold or seed it is; "" for any other run."""
        if self.run is None or self.parent is None:
            return ""
        name = container.tag or container.model_name
        if container.is_running_crossval:
            return f"{name} crossval {container.crossval_index}"
        if "random_seed" in _varied(self.run.tags):
            return f"{name} seed {container.random_seed}"
        return ""


def _varied(tags: Mapping[str, str]) -> list[str]:
    """Returns the names of the values that a sweep has chosen for a trial."""
    try:
        values = json.loads(tags.get("hyperparameters") or "{}")
    except ValueError:
        return []
    return list(values) if isinstance(values, dict) else []


def enter_job(environment: RunEnvironment, paths: RunPaths, environ: Mapping[str, str]) -> JobFacts:
    """Returns what a run in a job knows about itself, after putting back what its earlier attempts have left.

    :raises CheckpointError: If nobody can say whether earlier attempts have left checkpoints, or they cannot be
        fetched: starting from zero next to them is never right.
    """
    known = JobFacts(max(environment.attempt, _attempt_on_disk(paths)))
    if environment.is_child_of_runner:
        return known
    history = RunHistory.of_job(environ)
    if history is None:
        logger.warning("The variables of this job do not say where run history is: nothing is restored from it.")
        return known
    with history:
        try:
            run = history.run(environ["AZUREML_RUN_ID"])
            parent = history.run(run.parent_id) if run.parent_id and environment.is_global_rank_zero else None
            attempt = _restore(FormerAttempts(history, run), environment, paths)
        except ServiceError as error:
            is_refused = error.status in _ACCESS_STATUSES
            if is_refused and ENV_ATTEMPT in environ:
                logger.warning("%s Nothing can be restored from earlier attempts of this job.", error.message)
                return known
            way_out = (
                f"Give the job access, or set {ENV_ATTEMPT}=0 in its environment to start without looking for them."
                if is_refused
                else "Submit the job again when the service answers."
            )
            raise CheckpointError(
                f"Cannot find out whether earlier attempts of this job have left checkpoints: {error.message}", way_out
            ) from error
    return JobFacts(max(known.attempt, run.attempt, attempt), run, parent)


def show_display_name(name: str, run: RunFacts, environ: Mapping[str, str]) -> None:
    """Gives a run another name to display; if the service does not take it, the run goes on with the old one."""
    history = RunHistory.of_job(environ, NAME_PATIENCE)
    if history is None:
        return
    with history:
        try:
            history.update(run, display_name=name)
        except ServiceError as error:
            logger.warning("The run cannot be named %r: %s", name, error.message)


@contextmanager
def stored_files(
    job: JobFacts | None, environ: Mapping[str, str]
) -> Iterator[tuple[StoredFiles | None, StoredFiles | None]]:
    """Gives the files that AzureML has of a run in a job, and those of its sweep; None for what there is not."""
    history = RunHistory.of_job(environ) if job is not None else None
    if job is None or history is None:
        yield None, None
        return
    with history:
        run, parent = (None if facts is None else StoredFiles(history, facts) for facts in (job.run, job.parent))
        yield run, parent


def _attempt_on_disk(paths: RunPaths) -> int:
    """Returns which attempt this is as far as the record on this disk tells."""
    status = latest_status(read_rows(paths.record / RECORD_STATUS_FILE))
    return 0 if status is None else int(status.get("attempt") or 0) + 1


def _restore(former: FormerAttempts, environment: RunEnvironment, paths: RunPaths) -> int:
    """Returns how many attempts there were, after putting back what they have left, unless this disk has it."""
    attempts = former.count(RECORD_FOLDER)
    folder = recovery_folder(paths.outputs, node_rank=environment.node_rank)
    with once(paths.outputs.parent) as is_first:
        if is_first and not any(paths.checkpoints.glob("*.ckpt")):
            if environment.node_rank == 0 and former.restore(RECORD_FOLDER, paths.outputs):
                continue_on_other_disk(paths.record)
            former.restore_complete(CHECKPOINT_FOLDER, folder.parent, _is_complete)
    return attempts


def _is_complete(path: Path) -> bool:
    """Returns False for a checkpoint of which a part is missing or wrong."""
    if path.suffix != CHECKPOINT_SUFFIX:
        return True
    try:
        verify(path)
    except CheckpointError as error:
        logger.warning("%s", error.message)
        return False
    return True
