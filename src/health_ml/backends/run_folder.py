"""Makes the folder of a run, which no other run shares."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from itertools import count
from pathlib import Path

from health_ml.checkpoints.recovery import recovery_folder
from health_ml.deep_learning_config import RunPaths
from health_ml.environment import RunEnvironment
from health_ml.errors import OutputError, PlanError
from health_ml.settings import ENV_RUN_FOLDER, OUTPUTS_FOLDER

TIME_FORMAT = "%Y-%m-%dT%H%M%SZ"


def create_run_paths(
    model_name: str, *, environment: RunEnvironment, project_root: Path, output_to: Path | None
) -> RunPaths:
    """Returns the folders of this run, which exist.

    The first process makes ``<UTC time>_<model>`` below ``outputs`` or ``output_to``, with a number behind it if
    another run has the name already; the other processes use what the first one has made. In an AzureML job, the
    folders are those that the service collects.

    :raises OutputError: If a folder cannot be made or written to.
    :raises PlanError: If this is not the first process and nobody said which folder that one has made.
    """
    paths = None
    try:
        paths = _choose(model_name, environment=environment, project_root=project_root, output_to=output_to)
        paths.create()
        _check_writable(paths.outputs)
    except OSError as error:
        if paths is not None and environment.run_folder is None and not environment.is_in_azureml:
            shutil.rmtree(paths.outputs, ignore_errors=True)  # made just now, and of no use
        is_fixed = environment.run_folder is not None
        place = paths.outputs if paths is not None else output_to or project_root / OUTPUTS_FOLDER
        raise _cannot_write(error, place, flag=ENV_RUN_FOLDER if is_fixed else "--output_to") from error
    return paths


def _choose(model_name: str, *, environment: RunEnvironment, project_root: Path, output_to: Path | None) -> RunPaths:
    if environment.run_folder is not None:
        folder = (environment.start_directory or project_root) / environment.run_folder
        return RunPaths.below(folder, environment.run_id or folder.name)
    if environment.is_in_azureml:
        return RunPaths.in_job(project_root, environment.run_id or project_root.name)
    if not environment.is_global_rank_zero:
        raise PlanError(
            f"Process {environment.rank} of {environment.world_size} does not know the folder of its run.",
            f"Set {ENV_RUN_FOLDER} to one new folder for all processes before you start them.",
        )
    parent = output_to or project_root / OUTPUTS_FOLDER
    folder = make_unique_folder(parent, model_name, now=datetime.now(timezone.utc))
    return RunPaths.below(folder, environment.run_id or folder.name)


def own_checkpoints(environment: RunEnvironment, start_directory: Path) -> Path | None:
    """Returns the folder in which checkpoints of earlier attempts of this run are, if there may have been any."""
    if environment.run_folder is None:
        return None
    return recovery_folder(start_directory / environment.run_folder, node_rank=environment.node_rank)


def new_run_folder(parent: Path, model_name: str) -> Path:
    """Returns a new folder for a run that starts now.

    :raises OutputError: If it cannot be made.
    """
    try:
        return make_unique_folder(parent, model_name, now=datetime.now(timezone.utc))
    except OSError as error:
        raise _cannot_write(error, parent) from error


def _cannot_write(error: OSError, place: Path, *, flag: str = "--output_to") -> OutputError:
    return OutputError(
        f"Cannot write the results of the run to {error.filename or place}: {error.strerror or error}.",
        f"Free some space there, check the permissions, or choose another folder with {flag}.",
    )


def make_unique_folder(parent: Path, model_name: str, *, now: datetime) -> Path:
    """Returns a new folder, also if other processes make theirs in the same second."""
    parent = parent.absolute()
    parent.mkdir(parents=True, exist_ok=True)
    name = f"{now.strftime(TIME_FORMAT)}_{model_name}"
    for number in count():
        folder = parent / (f"{name}_{number}" if number else name)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() does not end")


def _check_writable(folder: Path) -> None:
    """Writes and removes a block of data: permissions alone do not tell whether the disk is full."""
    probe = folder / ".himl_probe"
    try:
        probe.write_bytes(bytes(4096))
    finally:
        probe.unlink(missing_ok=True)
