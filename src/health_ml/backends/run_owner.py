"""Keeps a folder that the user has fixed to one run: what another run writes there would damage its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from health_ml.environment import RunEnvironment
from health_ml.errors import EXIT_USAGE, OutputError
from health_ml.experiment_config import ExperimentConfig, RunnerMode
from health_ml.lightning_container import LightningContainer
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.records.reader import RecordView, read_status
from health_ml.settings import (
    CHECKPOINT_FOLDER,
    CONSOLE_LOGS_FOLDER,
    ENV_RUN_FOLDER,
    EXPERIMENT_SUMMARY_FILE,
    LOGS_FOLDER,
    PRETRAINED_MODELS_FOLDER,
    PROFILER_FOLDER,
    RECORD_CONFIG_DOCUMENT,
    RECORD_FOLDER,
    RECORD_RUN_DOCUMENT,
    RECORD_STATUS_FILE,
)

_INFERENCE = "an inference"
_KINDS = {RunnerMode.TRAIN.value: "a training", RunnerMode.EVAL_FULL.value: "an evaluation"}
_OF_ANY_RUN = frozenset(
    (
        CHECKPOINT_FOLDER,
        CONSOLE_LOGS_FOLDER,
        EXPERIMENT_SUMMARY_FILE,
        LOGS_FOLDER,
        PRETRAINED_MODELS_FOLDER,
        PROFILER_FOLDER,
        RECORD_FOLDER,
        "lost+found",  # on a disk of its own
    )
)
_OF_BATCH_SYSTEMS = (".log", ".out", ".err")
"""Endings of the files to which a batch system writes what a job prints."""
_NAMES_TO_SHOW = 4


def check_run_folder(
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    environment: RunEnvironment,
    start_directory: Path,
) -> None:
    """Raises if the folder that the user has fixed for the run belongs to something else. Writes nothing.

    A run is started again in its folder with the same model, to do the same. What other processes of this package fix
    for those that they start is right.

    :raises OutputError: If it is not a run folder, nor one to become one, or that of another run.
    """
    if environment.run_folder is None or environment.is_child_of_runner:
        return
    folder = (start_directory / environment.run_folder).absolute()
    record = folder / RECORD_FOLDER
    try:
        is_run_folder = any((record / name).is_file() for name in (RECORD_STATUS_FILE, f"{RECORD_RUN_DOCUMENT}.json"))
        names = [] if is_run_folder or not folder.is_dir() else sorted(path.name for path in folder.iterdir())
    except OSError:  # what is wrong is said when the run writes there
        return
    if not is_run_folder:
        _check_is_free(folder, names)
        return
    if FanOutFolder(folder).exists:
        raise _refusal(f"The run folder {folder} belongs to a fan-out, and this command is a single run.")
    view = RecordView(record)
    run, config = view.document(RECORD_RUN_DOCUMENT), view.document(RECORD_CONFIG_DOCUMENT)
    model = str(run.get("model") or container.model_name)
    is_inference = _value(config, "run_inference_only")
    if is_inference is None:  # an attempt that ended before it had written down what it does
        is_inference = container.run_inference_only
    mine = _what(experiment_config.mode.value, container.run_inference_only, container.model_name)
    its = _what(str(run.get("mode") or experiment_config.mode.value), bool(is_inference), model)
    if mine != its:
        status = read_status(record).status.value
        raise _refusal(f"The run folder {folder} belongs to {its} ({status}), and this command is {mine}.")


def _what(mode: str, is_inference: bool, model: str) -> str:
    kind = _INFERENCE if is_inference and mode == RunnerMode.TRAIN.value else _KINDS.get(mode, mode)
    return f"{kind} of {model}"


def _value(config: Mapping[str, Any], name: str) -> Any:
    entry = config.get(name)
    return entry.get("value") if isinstance(entry, dict) else None


def _check_is_free(folder: Path, names: Sequence[str]) -> None:
    """Raises if there is something in a folder that is no run folder yet, besides what may be there before a run."""
    if not folder.resolve().name:
        raise _refusal(f"{ENV_RUN_FOLDER}={folder} is the root of the file system, which is no folder for a run.")
    if others := [name for name in names if not _may_be_there(name)]:
        more = ", …" if len(others) > _NAMES_TO_SHOW else ""
        raise _refusal(
            f"The folder {folder} is not the folder of a run: it holds {', '.join(others[:_NAMES_TO_SHOW])}{more}."
        )


def _may_be_there(name: str) -> bool:
    return name in _OF_ANY_RUN or name.startswith(".") or name.endswith(_OF_BATCH_SYSTEMS)


def _refusal(message: str) -> OutputError:
    return OutputError(
        message,
        f"Nothing was changed there. Set {ENV_RUN_FOLDER} to another folder, or unset it: then every run gets a new "
        "one.",
        EXIT_USAGE,
    )
