"""The datasets of a job: which version of which data asset, made on first use."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from health_ml.azure.job_start import RUNNER
from health_ml.azure.storage import find_datastore, open_container
from health_ml.errors import DatasetError, HimlError, did_you_mean
from health_ml.planning.datasets import (
    LATEST,
    DatasetReference,
    folder_uri,
    input_name,
    listed_assets,
    parse_dataset,
)
from health_ml.planning.plan import JobPlan, PlannedDataset

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


@dataclass(frozen=True)
class ResolvedInput:
    """The data of an input.

    :param uri: Id of an exact version of a data asset, or an address.
    :param kind: ``uri_folder``, ``uri_file`` or ``mltable``.
    """

    uri: str
    kind: str = "uri_folder"


def resolve_inputs(client: MLClient, plan: JobPlan) -> dict[str, ResolvedInput]:
    """Returns the data of each input of a job. Data assets that do not exist yet are made.

    :raises DatasetError: With the first dataset that does not exist.
    """
    datastores = {parse_dataset(data.name).datastore for data in (*plan.datasets, *plan.output_datasets) if data.name}
    datastores |= {data.datastore for data in plan.datasets if data.name}
    for name in sorted(datastores - {""}):
        find_datastore(client, name)
    return {input_name(index): _resolve(client, data) for index, data in enumerate(plan.datasets) if data.name}


def _resolve(client: MLClient, data: PlannedDataset) -> ResolvedInput:
    reference = parse_dataset(data.name)
    if reference.uri:
        return ResolvedInput(reference.uri)
    asset = _find(client, reference)
    if asset is None:
        asset = _create(client, reference, data.datastore)
    return ResolvedInput(str(asset.id), str(asset.type))


def _find(client: MLClient, reference: DatasetReference) -> Any:
    """Returns a version of a data asset, or None if there is none of the name and any version would do."""
    from azure.ai.ml.exceptions import MlException  # for a label, where a version raises the other one
    from azure.core.exceptions import ResourceNotFoundError

    version = reference.version or None
    try:
        return client.data.get(reference.name, version=version, label=None if version else reference.label or LATEST)
    except (ResourceNotFoundError, MlException) as error:
        if not version and not reference.label:
            return None
        raise _unknown(client, reference) from error


def _create(client: MLClient, reference: DatasetReference, datastore: str) -> Any:
    if not datastore:
        raise _unknown(client, reference)
    from azure.ai.ml.entities import Data

    uri = folder_uri(datastore, reference.name)
    if _is_empty(client, datastore, reference.name):
        known = sorted({str(asset.name) for asset in client.data.list()})
        raise DatasetError(
            f"There is neither a data asset {reference.name!r} in the workspace {client.workspace_name}, nor a file in "
            f"the folder {reference.name} on the datastore {datastore}.",
            did_you_mean(reference.name, known) or "Check --azure_datasets and --datastore.",
        )
    description = f"The folder {reference.name} on the datastore {datastore}, registered by {RUNNER} on its first use."
    return client.data.create_or_update(
        Data(name=reference.name, version="1", path=uri, type="uri_folder", description=description)
    )


def _is_empty(client: MLClient, datastore: str, folder: str) -> bool:
    """Returns True for a folder without files; one that may not be listed from here may still be read by the job."""
    from azure.core.exceptions import AzureError

    try:
        return not open_container(client, datastore).has_files(f"{folder}/")
    except (AzureError, HimlError) as error:
        logger.debug("The folder %s on %s cannot be listed: %s", folder, datastore, error)
        return False


def _unknown(client: MLClient, reference: DatasetReference) -> DatasetError:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        versions = [str(asset.version) for asset in client.data.list(name=reference.name)]
    except ResourceNotFoundError:
        versions = []
    where = f"the workspace {client.workspace_name}"
    if versions:
        return DatasetError(
            f"The data asset {reference.text} does not exist in {where}.",
            f"The versions of {reference.name} are {', '.join(versions)}; the only label is {LATEST}.",
        )
    known = {str(asset.name) for asset in client.data.list()}
    return DatasetError(
        f"There is no data asset {reference.name!r} in {where}.",
        f"{did_you_mean(reference.name, known)} {listed_assets(known)} --datastore=NAME makes one from the "
        f"folder {reference.name!r} of a datastore.".strip(),
    )
