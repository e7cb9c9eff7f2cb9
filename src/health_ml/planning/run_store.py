"""The local store of runs: one folder per run, named after the run's id, below ``outputs`` or ``--output_to``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from health_ml.errors import RunNotFoundError, did_you_mean
from health_ml.planning.fan_out_folder import find_trial_folder
from health_ml.settings import DOWNLOADED_RUN_FILE, OUTPUTS_FOLDER

_IN_AZUREML = re.compile(r"[a-z0-9_-]+_\d{8}t\d{6}z_[0-9a-f]{8}(_\d+)?")

_NEWEST_RUNS_TO_NAME = 3
_LONGEST_NAME = 255
"""Bytes in the longest name of a file or folder, on every usual file system."""


def run_store_folders(project_root: Path, output_to: Path | None = None) -> tuple[Path, ...]:
    """Returns the folders that hold run folders, in the order in which they are searched.

    :param project_root: Folder of the project; its ``outputs`` folder is the default store.
    :param output_to: The value of ``--output_to``, relative to the project root if it is not absolute.
    """
    default_store = project_root.absolute() / OUTPUTS_FOLDER
    if output_to is None:
        return (default_store,)
    chosen_store = project_root.absolute() / output_to
    return (chosen_store, default_store) if chosen_store != default_store else (default_store,)


def find_run_folder(run_id: str, project_root: Path, output_to: Path | None = None) -> Path:
    """Returns the absolute folder of the run with the given id in the local store.

    :param run_id: Name of the run folder, for example ``2025-01-31T120000Z_HelloWorld``, or the id of a trial, which
        is that of its fan-out with ``_`` and the number of the trial behind it. A run folder of that name wins.
    :param project_root: Folder of the project; runs lie in its ``outputs`` folder.
    :param output_to: A folder that is searched first, the value of ``--output_to``.
    :raises RunNotFoundError: If there is no such run, naming the nearest ids and the folders that were searched.
    """
    stores = run_store_folders(project_root, output_to)
    if is_plain_name(run_id):
        for store in stores:
            if _is_run_folder(store / run_id):
                return store / run_id
        for store in stores:
            trial = find_trial_folder(store, run_id)
            if trial is not None:
                return trial
    searched = " and ".join(str(store) for store in stores)
    raise RunNotFoundError(f"There is no run '{run_id}' in {searched}.", _way_out(run_id, list(_run_folders(stores))))


def is_id_in_azureml(run_id: str) -> bool:
    """True if the id has the form of those that jobs in AzureML get."""
    return _IN_AZUREML.fullmatch(run_id) is not None


def is_plain_name(name: str) -> bool:
    """True if the name can be that of one folder: not empty or too long, no separators, neither ``.`` nor ``..``."""
    is_short = len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
    return is_short and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _run_folders(stores: tuple[Path, ...]) -> Iterator[Path]:
    for store in stores:
        if store.is_dir():
            yield from (entry for entry in store.iterdir() if _is_run_folder(entry) and not entry.name.startswith("."))


def _is_run_folder(folder: Path) -> bool:
    # Nobody has to be able to look into the folders of others.
    return folder.is_dir() and not os.access(folder / DOWNLOADED_RUN_FILE, os.F_OK)


def _way_out(run_id: str, runs: list[Path]) -> str:
    if is_id_in_azureml(run_id):
        return "This is the id of a job in AzureML: add --cluster=azureml."
    if not runs:
        return "No run has been stored there yet; start the command in the folder where the run was started."
    suggestion = did_you_mean(run_id, [run.name for run in runs])
    if suggestion:
        return suggestion
    newest = sorted(runs, key=lambda run: run.stat().st_mtime, reverse=True)[:_NEWEST_RUNS_TO_NAME]
    return f"The newest runs are {', '.join(run.name for run in newest)}."
