"""From what the user wrote to a checkpoint file on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from health_ml.checkpoints.download import DownloadLimits, download_checkpoint
from health_ml.checkpoints.parser import ACCEPTED_FORMS, CheckpointParser, is_file, missing_file_error
from health_ml.environment import process_environment
from health_ml.errors import ArgumentsError, CheckpointError, RunNotFoundError, WorkspaceError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.run_store import find_run_folder
from health_ml.settings import (
    BEST_OF_FAN_OUT,
    CHECKPOINT_SUFFIX,
    OUTPUTS_FOLDER,
    PRETRAINED_MODELS_FOLDER,
)

_CHECKPOINTS_TO_NAME = 10


class CheckpointStore(Protocol):
    """A place with runs of its own, for example a tracking service, that can hand out their checkpoints."""

    def fetch_checkpoint(self, run_id: str, remote_path: str, download_folder: Path) -> Path | None:
        """Returns the checkpoint of a run as a local file, or None if the store has no such run.

        :raises CheckpointError: If the store has the run, but not the file.
        """


def resolve_checkpoint(
    parser: CheckpointParser,
    *,
    start_directory: Path,
    project_root: Path,
    download_folder: Path,
    output_to: Path | None = None,
    other_stores: Sequence[CheckpointStore] = (),
    limits: DownloadLimits | None = None,
) -> Path:
    """Returns the absolute path of the checkpoint that the user asked for, downloaded if it is not on this machine.

    :param parser: What the user wrote.
    :param start_directory: Where relative paths start: the folder in which the user typed the command.
    :param project_root: Folder of the project, whose ``outputs`` folder holds the runs.
    :param download_folder: A URL is downloaded to ``pretrained_models`` in this folder.
    :param output_to: Another folder with runs, the value of ``--output_to``.
    :param other_stores: Asked, in this order, for run ids that the local store does not have.
    :param limits: How long and how much to download.
    :raises ArgumentsError: If the user wrote nothing.
    :raises RunNotFoundError: If no store has the run.
    :raises CheckpointError: If there is no such file, or it cannot be downloaded completely.
    """
    if not parser:
        raise ArgumentsError("The checkpoint is empty.", ACCEPTED_FORMS)
    if parser.is_url:
        folder = download_folder.absolute() / PRETRAINED_MODELS_FOLDER
        return download_checkpoint(parser.checkpoint, folder, limits or DownloadLimits())
    path = parser.local_path(start_directory)
    if path is not None and is_file(path):
        return path.resolve()
    if not parser.is_aml_run_id:
        raise missing_file_error(parser, start_directory)
    try:
        run_folder = find_run_folder(parser.run_id, project_root, output_to)
    except RunNotFoundError as missing:
        return _from_other_stores(parser, other_stores, download_folder, missing)
    return _checkpoint_in_run(run_folder, parser.remote_path)


def known_stores(
    *, start_directory: Path, config_path: Path | None = None, auth: str | None = None
) -> Sequence[CheckpointStore]:
    """Returns the stores of runs besides the local one: the AzureML workspace of this job or of the user.

    :param start_directory: Where the command was typed.
    :param config_path: The value of ``--workspace_config_path``.
    :param auth: The value of ``--auth``.
    :raises WorkspaceError: If the file that was given cannot be read.
    """
    from health_ml.azure.checkpoints import checkpoint_stores  # few runs start from a run

    return checkpoint_stores(process_environment(), start_directory=start_directory, config_path=config_path, auth=auth)


def _from_other_stores(
    parser: CheckpointParser, stores: Sequence[CheckpointStore], download_folder: Path, missing: RunNotFoundError
) -> Path:
    """Returns the checkpoint from the first store that has the run.

    :param missing: What the local store says.
    """
    for store in stores:
        try:
            found = store.fetch_checkpoint(parser.run_id, parser.remote_path, download_folder)
        except WorkspaceError as error:
            raise CheckpointError(
                f"{missing.message} AzureML cannot be asked for it: {error.message}", f"{missing.hint} {error.hint}"
            ) from error
        if found is not None:
            return found.resolve()
    if stores:
        raise RunNotFoundError(f"{missing.message} The AzureML workspace has none of that id either.", missing.hint)
    raise missing


def _checkpoint_in_run(run_folder: Path, remote_path: str) -> Path:
    """Returns a checkpoint in a run of the local store.

    Elsewhere the folder that the run writes to is called ``outputs``; a path that starts with it works here as well.
    In a fan-out, ``best`` stands for the checkpoint of the best trial.
    """
    fan_out = FanOutFolder(run_folder)
    if remote_path == BEST_OF_FAN_OUT and fan_out.exists:
        return _best_checkpoint(fan_out)
    for candidate in (remote_path, remote_path.removeprefix(f"{OUTPUTS_FOLDER}/")):
        if is_file(run_folder / candidate):
            return (run_folder / candidate).resolve()
    present = sorted(str(path.relative_to(run_folder)) for path in run_folder.rglob(f"*{CHECKPOINT_SUFFIX}"))
    message = f"The run '{run_folder.name}' has no file {remote_path} in {run_folder}."
    if not present:
        raise CheckpointError(message, "It has no checkpoints at all.")
    shown = ", ".join(f"{run_folder.name}:{name}" for name in present[:_CHECKPOINTS_TO_NAME])
    more = f" and {len(present) - _CHECKPOINTS_TO_NAME} more" if len(present) > _CHECKPOINTS_TO_NAME else ""
    raise CheckpointError(message, f"Its checkpoints are {_in_flag_form(shown)}{more}.")


def _best_checkpoint(fan_out: FanOutFolder) -> Path:
    """Returns the checkpoint of the best trial.

    :raises CheckpointError: If there is none.
    """
    if fan_out.best_checkpoint.is_file():
        return fan_out.best_checkpoint.resolve()
    trials = ", ".join(fan_out.trial_run_id(index) for index in fan_out.trial_indices()[:_CHECKPOINTS_TO_NAME])
    raise CheckpointError(
        f"The fan-out '{fan_out.run_id}' has no best trial: it has not ended, no trial has finished, or no "
        "--primary_metric ranks the trials.",
        f"Name one of its trials: {trials}." if trials else "It has no trials at all.",
    )


def _in_flag_form(names: str) -> str:
    """Returns the names as they can be given to the flag, where the checkpoints folder need not be written."""
    return names.replace(":checkpoints/", ":")
