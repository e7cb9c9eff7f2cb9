"""Checkpoints of the runs of a workspace, downloaded once into the cache of this user."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from health_ml.azure.auth import get_credential
from health_ml.azure.client import find_workspace
from health_ml.azure.downloads import newest_outputs
from health_ml.azure.history import Artifact, RunFacts, RunHistory
from health_ml.azure.searches import best_trial, tested_checkpoint
from health_ml.azure.transfer import BlobDownloader, RemoteFile, safe_path, writing_error
from health_ml.errors import CheckpointError, RunNotFoundError, WorkspaceError, join_choices
from health_ml.planning.snapshot import user_cache_folder
from health_ml.settings import (
    BEST_CHECKPOINT,
    BEST_OF_FAN_OUT,
    CHECKPOINT_CACHE_FOLDER,
    CHECKPOINT_FOLDER,
    CHECKPOINT_SUFFIX,
    LAST_CHECKPOINT,
    OUTPUTS_FOLDER,
)

logger = logging.getLogger(__name__)

_CHECKPOINTS_TO_NAME = 10


class AzureMLCheckpoints:
    """The checkpoints of the runs of a workspace.

    :param open_history: Connects to run history.
    :param cache_folder: Where checkpoints are downloaded to; several processes can share it.
    """

    def __init__(self, open_history: Callable[[], RunHistory], cache_folder: Path) -> None:
        self._open_history = open_history
        self._cache_folder = cache_folder

    def fetch_checkpoint(self, run_id: str, remote_path: str, download_folder: Path) -> Path | None:
        """Returns the checkpoint of a run as a local file, or None if the workspace has no such run.

        Of a run that was restarted, it is the one that the newest attempt has written. Of a search, ``best`` is the
        one that its best trial has tested, or else the last one of that. What is in the cache is downloaded again only
        if it has changed.

        :param remote_path: Path in the outputs of the run, or from the top of the run, like ``outputs/…``.
        :param download_folder: Not used: other runs want the file too.
        :raises CheckpointError: If the run has no such file, naming its checkpoints.
        :raises HimlError: If the workspace cannot be asked, or the file not be downloaded completely.
        """
        with self._open_history() as history:
            try:
                run = history.run(run_id)
            except RunNotFoundError:
                return None
            run, artifact = _find(history, run, remote_path)
            workspace = history.workspace
        digest = hashlib.sha256(workspace.lower().encode()).hexdigest()[:8]
        return self._download(artifact, self._cache_folder / f"{workspace.rpartition('/')[2]}-{digest}" / run.run_id)

    def _download(self, artifact: Artifact, folder: Path) -> Path:
        target = safe_path(folder, artifact.path)
        is_new = not target.exists()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.with_name(f".{target.name}.lock").open("a") as lock, BlobDownloader() as downloader:
                fcntl.flock(lock, fcntl.LOCK_EX)
                (path,) = downloader.fetch([RemoteFile(artifact.path, artifact.url)], folder)
        except OSError as error:
            raise writing_error(error, folder) from error
        if is_new:
            logger.info("The checkpoint is in %s.", path)
        return path


def checkpoint_stores(
    environ: Mapping[str, str], *, start_directory: Path, config_path: Path | None = None, auth: str | None = None
) -> list[AzureMLCheckpoints]:
    """Returns the workspace of this job, or the one that the user has configured; nothing if there is none.

    :param environ: The environment variables of this process.
    :param start_directory: Where the command was typed.
    :param config_path: The value of ``--workspace_config_path``.
    :param auth: The value of ``--auth``.
    :raises WorkspaceError: If the file that was given cannot be read.
    """
    cache_folder = user_cache_folder(environ) / CHECKPOINT_CACHE_FOLDER
    if RunHistory.is_in_job(environ):
        return [AzureMLCheckpoints(lambda: RunHistory.in_job(environ), cache_folder)]
    try:
        workspace = find_workspace(config_path=config_path, start_directory=start_directory, environ=environ)
    except WorkspaceError:
        if config_path is not None:
            raise
        return []
    credential = get_credential(environ=environ, auth=auth)
    return [AzureMLCheckpoints(lambda: RunHistory.of_workspace(workspace.arm_id, credential), cache_folder)]


def check_checkpoint(history: RunHistory, run_id: str, remote_path: str) -> None:
    """Raises an error unless a job finds the checkpoint of a run. A run that goes on may still write it.

    :raises RunNotFoundError: If the workspace has no such run.
    :raises CheckpointError: If the run has ended without the file, naming its checkpoints.
    """
    run = history.run(run_id)
    try:
        _find(history, run, remote_path)
    except CheckpointError as error:
        if run.run_status.is_final:
            raise
        logger.warning("%s The job fails if it has not written the file when the job starts.", error.message)


def _find(history: RunHistory, run: RunFacts, remote_path: str) -> tuple[RunFacts, Artifact]:
    """Returns the file that is meant, and the run that has it: of a search, that is its best trial."""
    tested = ""
    if run.is_sweep and remote_path in (BEST_OF_FAN_OUT, f"{CHECKPOINT_FOLDER}/{BEST_CHECKPOINT}"):
        run, remote_path = _best_of(history, run), f"{CHECKPOINT_FOLDER}/{LAST_CHECKPOINT}"
        tested = tested_checkpoint(history, run)
    artifacts = history.artifacts(run, f"{OUTPUTS_FOLDER}/")
    artifact = _choose(artifacts, tested) or _choose(artifacts, remote_path)
    if artifact is None:
        raise _missing(history, run, artifacts, remote_path)
    return run, artifact


def _best_of(history: RunHistory, search: RunFacts) -> RunFacts:
    trial = best_trial(history, search)
    if not search.run_status.is_final:
        logger.warning("The search %s goes on: another trial may still be better.", search.run_id)
    logger.info("The best trial of %s is %s.", search.run_id, trial.run_id)
    return trial


def _choose(artifacts: list[Artifact], remote_path: str) -> Artifact | None:
    """Returns the file that is meant: in the outputs, or from the top of the run."""
    newest = newest_outputs(artifacts)
    for candidate in (remote_path, remote_path.removeprefix(f"{OUTPUTS_FOLDER}/")):
        if candidate in newest:
            return newest[candidate]
    return next((artifact for artifact in artifacts if artifact.path == remote_path), None)


def _missing(history: RunHistory, run: RunFacts, artifacts: list[Artifact], remote_path: str) -> CheckpointError:
    message = f"The run '{run.run_id}' in AzureML has no file {remote_path}; its status is {run.status}."
    present = [path for path in newest_outputs(artifacts) if path.endswith(CHECKPOINT_SUFFIX)]
    if present:
        names = [f"{run.run_id}:{path.removeprefix(f'{CHECKPOINT_FOLDER}/')}" for path in present]
        more = f" and {len(names) - _CHECKPOINTS_TO_NAME} more" if len(names) > _CHECKPOINTS_TO_NAME else ""
        return CheckpointError(message, f"Its checkpoints are {', '.join(names[:_CHECKPOINTS_TO_NAME])}{more}.")
    children = [child.run_id for child in history.children(run)]
    if children:
        return CheckpointError(
            message,
            f"It is a search: give the id of a trial, like {join_choices(children[:5])}, or {run.run_id}:best.",
        )
    return CheckpointError(message, "It has no checkpoints at all.")
