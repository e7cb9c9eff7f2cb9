"""What can be checked before a run makes its folder: everything here is cheap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError, DatasetError, PlanError
from health_ml.experiment_config import ExperimentConfig, RunnerMode
from health_ml.lightning_container import LightningContainer


def check_before_start(
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    environment: RunEnvironment,
    start_directory: Path,
) -> None:
    """Makes the paths of the container absolute, and raises if the run cannot succeed.

    :raises HimlError: Of the kind of the first check that finds a mistake, naming all mistakes of that kind.
    """
    checks: tuple[Callable[[], None], ...] = (
        lambda: _check_mode(experiment_config, container),
        lambda: _check_nodes(experiment_config, environment),
        lambda: resolve_datasets(container, environment=environment, start_directory=start_directory),
        lambda: _check_regression_folder(container, start_directory),
    )
    for check in checks:
        check()
    if container.output_to is not None:
        container.output_to = start_directory / container.output_to


def _check_mode(experiment_config: ExperimentConfig, container: LightningContainer) -> None:
    if experiment_config.mode is not RunnerMode.EVAL_FULL:
        return
    problems = [
        f"--{name} has no effect with --mode=eval_full, which only tests."
        for name in ("resume_training", "run_inference_only", "run_extra_val_epoch")
        if getattr(container, name)
    ]
    if not container.src_checkpoint:
        problems.append(
            "To use model evaluation, you need to provide a checkpoint: add --src_checkpoint=<file, URL or run id>."
        )
    if problems:
        raise ArgumentsError(" ".join(problems))


def _check_nodes(experiment_config: ExperimentConfig, environment: RunEnvironment) -> None:
    if experiment_config.num_nodes > 1 and environment.main_address is None:
        raise PlanError(
            f"--num_nodes={experiment_config.num_nodes} needs as many machines, and this one was started alone.",
            "Start the command on each machine with MASTER_ADDR, MASTER_PORT, NODE_RANK and WORLD_SIZE set, or "
            "submit it to a cluster with --cluster.",
        )


def resolve_datasets(container: LightningContainer, *, environment: RunEnvironment, start_directory: Path) -> None:
    """Makes the dataset folders absolute.

    :raises DatasetError: If some do not exist, naming all of them, or if the datasets are in Azure only.
    """
    folders = [start_directory / Path(folder).expanduser() for folder in container.local_datasets]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        noun = "dataset folder does" if len(missing) == 1 else "dataset folders do"
        raise DatasetError(
            f"The following {noun} not exist: {', '.join(missing)}.",
            "Check --local_datasets; relative paths are relative to the folder in which you type the command.",
        )
    if container.azure_datasets and not folders and not environment.is_in_azureml:
        raise DatasetError(
            f"The datasets {', '.join(container.azure_datasets)} are in AzureML, and this run is on this machine.",
            "Give their folders on this machine with --local_datasets, or submit the run with --cluster.",
        )
    container.local_datasets = folders


def _check_regression_folder(container: LightningContainer, start_directory: Path) -> None:
    if container.regression_test_folder is None:
        return
    folder = start_directory / container.regression_test_folder
    if not folder.is_dir():
        raise ArgumentsError(
            f"The folder with the expected results does not exist: {folder}.",
            "Check --regression_test_folder; it needs a folder OUTPUT with the files to compare.",
        )
    container.regression_test_folder = folder
