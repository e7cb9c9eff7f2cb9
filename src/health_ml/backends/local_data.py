"""The datasets of a run on this machine: given folders, what a job provides, or downloads from AzureML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from health_ml.environment import RunEnvironment
from health_ml.errors import DatasetError, WorkspaceError
from health_ml.experiment_config import ExperimentConfig
from health_ml.lightning_container import LightningContainer
from health_ml.planning.dataset_inputs import input_folders


def provide_datasets(
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    environment: RunEnvironment,
    start_directory: Path,
    environ: Mapping[str, str],
) -> None:
    """Sets the dataset folders of the container, which may take a download.

    In a job these are the inputs of the job; elsewhere the folders that the user gave, for which nobody has to sign
    in, or else copies of the datasets in AzureML, in the cache of this user.

    :raises DatasetError: If a dataset does not exist, or the job lacks an input for it.
    :raises HimlError: If AzureML cannot be reached or refuses access.
    """
    names = container.azure_datasets
    if not names:
        return
    provided = input_folders(environ)
    if provided:
        _check_count(names, provided)
        container.local_datasets = provided[: len(names)]
    elif environment.is_in_azureml and not container.local_datasets:
        raise DatasetError(
            f"The datasets {', '.join(names)} are no inputs of this job.",
            "Submit it with himl-runner --cluster=…, which makes them inputs, or name its inputs INPUT_0, INPUT_1, ….",
        )
    elif not container.local_datasets:
        container.local_datasets = _download(experiment_config, container, start_directory, environ)


def _check_count(names: list[str], provided: list[Path]) -> None:
    if len(provided) < len(names):
        raise DatasetError(
            f"The model reads {len(names)} datasets ({', '.join(names)}), but this job has {len(provided)} inputs: "
            f"{', '.join(map(str, provided))}.",
            "Submit it with himl-runner --cluster=…, or give it an input for each dataset.",
        )


def _download(
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    start_directory: Path,
    environ: Mapping[str, str],
) -> list[Path]:
    # The SDK takes seconds to load, and is needed only if something has to be downloaded.
    from health_ml.azure.client import connect, find_workspace
    from health_ml.azure.datasets import DatasetCache, dataset_cache_folder

    try:
        workspace = find_workspace(
            config_path=experiment_config.workspace_config_path, start_directory=start_directory, environ=environ
        )
    except WorkspaceError as error:
        raise DatasetError(
            f"The datasets {', '.join(container.azure_datasets)} are in AzureML. {error.message}",
            f"Give folders on this machine as --local_datasets=FOLDER[,FOLDER]. {error.hint}",
        ) from error
    auth = experiment_config.auth_name
    cache = DatasetCache(
        dataset_cache_folder(environ), workspace, lambda: connect(workspace, environ=environ, auth=auth)
    )
    return cache.provide(container.azure_datasets, datastore=container.datastore)
