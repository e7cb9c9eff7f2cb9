"""What can be checked before a run makes its folder: everything here is cheap."""

from __future__ import annotations

from pathlib import Path

from health_ml.checkpoints.download import check_reachable
from health_ml.checkpoints.fetch import resolve_checkpoint
from health_ml.checkpoints.files import list_checkpoint_files
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.checkpoints.signature import check_signing_key
from health_ml.environment import process_environment
from health_ml.errors import ArgumentsError, DatasetError
from health_ml.experiment_config import ExperimentConfig, RunnerMode
from health_ml.lightning_container import LightningContainer
from health_ml.records.tracking import resolve_tracking_uri
from health_ml.training.regression import check_expected_folder
from health_ml.training.stores import stores_for
from health_ml.training.weights import check_epochs_left, check_weights, examine_checkpoint, is_trusted


def check_before_start(
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    start_directory: Path,
    project_root: Path,
    is_new_run: bool = True,
    own_checkpoints: Path | None = None,
) -> None:
    """Makes the paths of the container absolute, and raises if the run cannot succeed.

    :param start_directory: Where relative paths start.
    :param project_root: Folder of the default tracking store.
    :param is_new_run: False for a process that joins or repeats a run: a checkpoint may be in its folder already.
    :param own_checkpoints: Folder with the checkpoints of earlier attempts of this run, if there was one.
    :raises HimlError: Of the kind of the first check that finds a mistake, naming all mistakes of that kind.
    """
    check_signing_key()
    if container.output_to is not None:
        container.output_to = start_directory / container.output_to
    resolve_datasets(container, start_directory=start_directory)
    parser = container.src_checkpoint
    if _continues_from_own(experiment_config, container, own_checkpoints):
        parser = None  # the one that the first attempt began with may be gone by now
    if parser and not parser.is_url:
        _check_checkpoint(
            parser, experiment_config, container, start_directory=start_directory, project_root=project_root
        )
    elif parser and is_new_run:
        check_reachable(parser.checkpoint)
    _resolve_regression_folder(container, start_directory)
    resolve_tracking_uri(experiment_config.tracking_uri, environ=process_environment(), project_root=project_root)


def resolve_datasets(container: LightningContainer, *, start_directory: Path) -> None:
    """Makes the dataset folders absolute.

    :raises DatasetError: If some do not exist, naming all of them.
    """
    folders = [start_directory / Path(folder).expanduser() for folder in container.local_datasets]
    files = [str(folder) for folder in folders if folder.is_file()]
    if files:
        raise DatasetError(
            f"--local_datasets takes folders, and these are files: {', '.join(files)}.",
            "Give the folder that holds the file.",
        )
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        noun = "dataset folder does" if len(missing) == 1 else "dataset folders do"
        raise DatasetError(
            f"The following {noun} not exist: {', '.join(missing)}.",
            "Check --local_datasets; relative paths are relative to the folder in which you type the command.",
        )
    container.local_datasets = folders


def _continues_from_own(
    experiment_config: ExperimentConfig, container: LightningContainer, own_checkpoints: Path | None
) -> bool:
    """Returns whether a training was restarted that continues from a checkpoint of its own."""
    is_resumed = container.resume_training and experiment_config.mode is RunnerMode.TRAIN
    return is_resumed and own_checkpoints is not None and bool(list_checkpoint_files(own_checkpoints))


def _check_checkpoint(
    parser: CheckpointParser,
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    start_directory: Path,
    project_root: Path,
) -> None:
    """Checks a checkpoint on this machine, so that a wrong one leaves no run behind.

    :raises HimlError: If the checkpoint does not exist, cannot be read, or leaves nothing to train.
    """
    path = resolve_checkpoint(
        parser,
        start_directory=start_directory,
        project_root=project_root,
        download_folder=project_root,
        output_to=container.output_to,
        other_stores=stores_for(parser, experiment_config, start_directory),
    )
    is_evaluated = container.run_inference_only or experiment_config.mode is RunnerMode.EVAL_FULL
    if container.resume_training or is_evaluated:
        checkpoint = examine_checkpoint(path, is_trusted=is_trusted(path, container))
        if not is_evaluated:
            check_epochs_left(checkpoint, container)
    else:
        check_weights(path)


def _resolve_regression_folder(container: LightningContainer, start_directory: Path) -> None:
    if container.regression_test_folder is None:
        return
    folder = start_directory / container.regression_test_folder
    if not folder.is_dir():
        raise ArgumentsError(
            f"The folder with the expected results does not exist: {folder}.",
            "Check --regression_test_folder; it needs a folder OUTPUT with the files to compare.",
        )
    check_expected_folder(folder)
    container.regression_test_folder = folder
