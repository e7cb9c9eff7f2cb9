"""Carries over what the mirror of a run has missed: a server was down, or the machine had no network."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from health_ml.environment import environment_variables, process_environment
from health_ml.errors import ArgumentsError, BackendError, OutputError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.secrets import MASK, mask_text
from health_ml.records.fan_out_mirror import FanOutMirror, trial_settings
from health_ml.records.mirror import mlflow_environment
from health_ml.records.mirror_loop import MirrorLoop
from health_ml.records.mirror_state import MirrorProgress, MirrorSettings, MirrorState, mirror_lock
from health_ml.records.reader import read_record
from health_ml.records.tracking import NO_TRACKING, resolve_tracking_uri, split_credentials
from health_ml.settings import ENV_MLFLOW_TRACKING_URI, RECORD_RUN_DOCUMENT


def sync(record_folder: Path, *, tracking_uri: str = "", project_root: Path | None = None) -> MirrorState:
    """Returns what was achieved after carrying over everything that the mirrors of a record lack.

    Doing so twice changes nothing.

    :param record_folder: Folder of the record, or the run folder.
    :param tracking_uri: Another store than the one that the run was mirrored to.
    :param project_root: Folder of the default store, by default the working directory.
    :raises RunNotFoundError: If there is no record.
    :raises BackendError: If the mirror of the run is still at work.
    :raises ArgumentsError: If the address of the store contained a password, which the record does not keep.
    :raises OutputError: If the folder of the record cannot be written: it says how far the mirrors are.
    """
    if tracking_uri.strip().lower() == NO_TRACKING:
        raise ArgumentsError(
            f"--tracking_uri={tracking_uri}: there is nothing to carry a run over to.",
            "Leave it out for the store that the run was mirrored to, or give another one.",
        )
    folder = read_record(record_folder).folder.absolute()
    settings, credentials = _settings(folder, tracking_uri, project_root or Path.cwd())
    try:
        return _sync(folder, settings, credentials)
    except OSError as error:
        raise OutputError(
            f"Cannot note how far the run is carried over: {error.filename or folder}: {error.strerror or error}.",
            f"Make {folder.parent} writable, or copy it to where you can write and give --output_to=<parent of the "
            "copy>.",
        ) from error


def _sync(folder: Path, settings: MirrorSettings, credentials: Mapping[str, str]) -> MirrorState:
    with mirror_lock(folder) as is_mine:
        if not is_mine:
            raise BackendError(
                f"The mirror of the run in {folder} is at work.",
                "It carries everything over by itself; try again when the run has ended.",
            )
        address = {ENV_MLFLOW_TRACKING_URI: settings.tracking_uri}
        variables = {**mlflow_environment(process_environment()), **credentials, **address}
        with environment_variables(variables), _quiet_mlflow():
            fan_out = FanOutFolder(folder.parent)
            if fan_out.exists:
                return FanOutMirror(fan_out, settings, wait=time.sleep).run_once()
            return MirrorLoop(folder, settings, wait=time.sleep).run_once()


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Drops what MLflow logs in the body: the state of the mirror says in a sentence what went wrong."""
    import mlflow  # noqa: F401 - loading it sets the levels of its loggers

    library = logging.getLogger("mlflow")
    before = library.level
    library.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        library.setLevel(before)


def _settings(folder: Path, tracking_uri: str, project_root: Path) -> tuple[MirrorSettings, dict[str, str]]:
    saved = _saved_settings(folder)
    run = read_record(folder).document(RECORD_RUN_DOCUMENT)
    run_id = str(run.get("run_id") or folder.parent.name)
    environ = process_environment()
    address, credentials = split_credentials(
        resolve_tracking_uri(
            tracking_uri or _saved_uri(saved.get("tracking_uri", ""), environ.get(ENV_MLFLOW_TRACKING_URI, "")),
            environ=environ,
            project_root=project_root,
        )
    )
    settings = MirrorSettings(
        tracking_uri=address,
        experiment=saved.get("experiment") or str(run.get("experiment") or run.get("model") or "himl"),
        run_name=saved.get("run_name") or run_id,
        tensorboard_folder=saved.get("tensorboard_folder", ""),
    )
    return settings, credentials


def _saved_settings(folder: Path) -> dict[str, str]:
    """Returns where a record was mirrored to; for a trial that was not, where its fan-out was."""
    saved = MirrorProgress.load(folder).settings
    fan_out = FanOutFolder.of_trial(folder.parent)
    if saved or fan_out is None:
        return saved
    settings = MirrorProgress.load(fan_out.record).settings
    if not settings:
        return {}
    return asdict(trial_settings(fan_out, int(folder.parent.name), MirrorSettings(**settings)))


def _saved_uri(saved: str, in_environment: str) -> str:
    """Returns the address that the run was mirrored to, with the credentials that the environment has for it."""
    if saved and saved in (mask_text(in_environment), split_credentials(in_environment)[0]):
        return in_environment
    if MASK not in saved:
        return saved
    raise ArgumentsError(
        f"The run was mirrored to {saved}, and the record does not keep passwords.",
        f"Set {ENV_MLFLOW_TRACKING_URI} to the full address.",
    )
