"""What a job finds on its nodes: its files, its data, its command line and its environment variables."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.azureml.history_routes import experiment_id
from tests.azureml.job_routes import asset_key
from tests.azureml.resources import LONG_URI
from tests.azureml.state import Job
from tests.azureml.workspace_routes import container_of

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

EXPRESSION = re.compile(r"\$\{\{\s*(inputs|outputs|search_space)\.([\w-]+)\s*\}\}")
PASSED_ON = ("LANG", "LC_ALL", "OMP_NUM_THREADS", "HIML_TEST_SESSION", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")


@dataclass(frozen=True)
class Place:
    """A folder or file of a datastore."""

    container: str
    path: str


@dataclass
class Data:
    """Inputs and outputs of an attempt: what their expressions stand for, and where outputs have to go."""

    values: dict[tuple[str, str], str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    outputs: dict[Path, Place] = field(default_factory=dict)
    mounted: list[Path] = field(default_factory=list)
    """Folders outside the job's own, to be removed at the end."""


def place_of(cloud: Cloud, uri: str) -> Place | None:
    """Returns where the data of an address are, following data assets; None for an address outside datastores."""
    key = asset_key("data", uri)
    if key is not None:
        uri = cloud.state.data[key]["properties"]["dataUri"]
    match = LONG_URI.fullmatch(uri)
    return Place(container_of(cloud, match[1]), match[2]) if match else None


def fetch(cloud: Cloud, place: Place, target: Path) -> None:
    """Downloads a folder or a single file of a datastore into a folder."""
    prefix = place.path.rstrip("/")
    names = cloud.azurite.names(place.container, prefix)
    for name in names:
        if name != prefix and prefix and not name.startswith(f"{prefix}/"):
            continue
        relative = name.removeprefix(prefix).strip("/") or name.rpartition("/")[2]
        file = target / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cloud.azurite.read(place.container, name))


def fetch_code(cloud: Cloud, job: Job, target: Path) -> None:
    """Downloads the snapshot of a job; blobs lose the permission to be executed, as in the service."""
    target.mkdir(parents=True, exist_ok=True)
    key = asset_key("codes", str(job.body.get("codeId") or ""))
    if key is not None:
        address = cloud.state.codes[key]["properties"]["codeUri"].replace(":443/", "/")
        container, _, path = address.removeprefix(f"{cloud.workspace.blob_address}/").partition("/")
        fetch(cloud, Place(container, path), target)


def prepare_data(cloud: Cloud, job: Job, folder: Path) -> Data:
    """Returns the inputs and outputs of a job, with the data of inputs downloaded below the folder."""
    data = Data()
    for name, entry in (job.body.get("inputs") or {}).items():
        value = _input_value(cloud, job, name, entry, folder, data)
        data.values["inputs", name] = value
        if entry["jobInputType"] != "literal":
            data.variables[f"AZURE_ML_INPUT_{name}"] = value
    for name, entry in (job.body.get("outputs") or {}).items():
        path = _mount_point(job, "OUTPUT", name, entry.get("pathOnCompute"), folder / "outputs", data)
        path.mkdir(parents=True, exist_ok=True)
        default = f"azureml://datastores/workspaceblobstore/paths/azureml/{job.name}/{name}/"
        place = place_of(cloud, entry.get("uri") or default)
        if place is not None:
            data.outputs[path] = place
        data.values["outputs", name] = data.variables[f"AZURE_ML_OUTPUT_{name}"] = str(path)
    for name, value in job.parameters.items():
        data.values["search_space", name] = data.variables[f"AZUREML_SWEEP_{name}"] = str(value)
    return data


def _input_value(cloud: Cloud, job: Job, name: str, entry: dict[str, Any], folder: Path, data: Data) -> str:
    if entry["jobInputType"] == "literal":
        return str(entry["value"])
    place = place_of(cloud, entry["uri"])
    if place is None or entry.get("mode") == "Direct":
        return str(entry["uri"])
    path = _mount_point(job, "INPUT", name, entry.get("pathOnCompute"), folder / "inputs", data)
    path.mkdir(parents=True, exist_ok=True)
    fetch(cloud, place, path)
    if entry["jobInputType"] == "uri_file":
        path = path / place.path.rpartition("/")[2]
    return str(path)


def _mount_point(job: Job, direction: str, name: str, given: str | None, folder: Path, data: Data) -> Path:
    """Returns where an input or output is on the node; the SDK says it in the entry or in a property of the job."""
    given = given or job.properties.get(f"AZURE_ML_{direction}_PathOnCompute_{name}")
    if not given:
        return folder / name
    path = Path(given)
    if path.exists():
        raise FileExistsError(f"{path}, the mount point of {name}, exists on this machine.")
    data.mounted.append(path)
    return path


def substituted(command: str, data: Data) -> str:
    """Returns the command with the expressions for inputs, outputs and values of the search space replaced."""
    return EXPRESSION.sub(lambda match: data.values.get((match[1], match[2]), match[0]), command)


def remove_mounts(data: Data) -> None:
    """Removes what was made outside the job's own folder."""
    for path in data.mounted:
        shutil.rmtree(path, ignore_errors=True)


def job_variables(cloud: Cloud, job: Job, home: Path) -> dict[str, str]:
    """Returns the variables that every process of a job has, whichever node it is on."""
    workspace = cloud.workspace
    address = workspace.data_plane.replace("https", "azureml")
    token = cloud.tokens.issue("https://ml.azure.com")
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        **cloud.network_variables,
        "AZUREML_RUN_ID": job.name,
        "AZUREML_ROOT_RUN_ID": job.parent or job.name,
        "AZUREML_RUN_TOKEN": token,
        "AZUREML_EXPERIMENT_ID": experiment_id(job.experiment),
        "AZUREML_ARM_SUBSCRIPTION": workspace.subscription_id,
        "AZUREML_ARM_RESOURCEGROUP": workspace.resource_group,
        "AZUREML_ARM_WORKSPACE_NAME": workspace.name,
        "AZUREML_ARM_PROJECT_NAME": job.experiment,
        "AZUREML_WORKSPACE_ID": workspace.workspace_id,
        "AZUREML_SERVICE_ENDPOINT": workspace.data_plane,
        "AZUREML_DISCOVERY_SERVICE_ENDPOINT": f"{workspace.data_plane}/discovery",
        "MLFLOW_TRACKING_URI": f"{address}/mlflow/v2.0{workspace.prefix}",
        "MLFLOW_TRACKING_TOKEN": token,
        "MLFLOW_RUN_ID": job.name,
        "MLFLOW_EXPERIMENT_NAME": job.experiment,
        "MLFLOW_EXPERIMENT_ID": experiment_id(job.experiment),
    }
    identity = (job.body.get("identity") or {}).get("identityType")
    if identity == "UserIdentity":
        variables["OBO_ENDPOINT"] = f"{cloud.plain_address}/node/on_behalf_of"
    elif identity == "Managed":
        variables["MSI_ENDPOINT"] = f"{cloud.plain_address}/node/managed_identity"
        variables["MSI_SECRET"] = "node"
    return variables | cloud.node_variables | {key: str(value) for key, value in _own_variables(job).items()}


def _own_variables(job: Job) -> dict[str, Any]:
    return dict(job.body.get("environmentVariables") or {})


@dataclass(frozen=True)
class Launch:
    """One process of a job."""

    node: int
    variables: dict[str, str]
    log_name: str


def launches(job: Job) -> list[Launch]:
    """Returns the processes that AzureML starts for a job: one per node and process of its distribution.

    Without a distribution the command runs on the first node alone.
    """
    distribution = job.body.get("distribution") or {}
    kind = distribution.get("distributionType")
    if kind is None:
        return [Launch(0, {}, "user_logs/std_log.txt")]
    nodes = int((job.body.get("resources") or {}).get("instanceCount") or 1)
    per_node = int(distribution.get("processCountPerInstance") or 1)
    size, port = nodes * per_node, _free_port()
    found = []
    for rank in range(size):
        node, local_rank = divmod(rank, per_node)
        if kind == "Mpi":
            variables = _mpi_variables(rank, local_rank, size, per_node, port)
        else:
            variables = {"RANK": rank, "LOCAL_RANK": local_rank, "NODE_RANK": node, "WORLD_SIZE": size,
                         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        width = len(str(size - 1))
        name = f"user_logs/std_log_process_{rank:0{width}}.txt"
        found.append(Launch(node, {key: str(value) for key, value in variables.items()}, name))
    return found


def _mpi_variables(rank: int, local_rank: int, size: int, per_node: int, port: int) -> dict[str, Any]:
    return {
        "OMPI_COMM_WORLD_RANK": rank,
        "OMPI_COMM_WORLD_SIZE": size,
        "OMPI_COMM_WORLD_LOCAL_RANK": local_rank,
        "OMPI_COMM_WORLD_LOCAL_SIZE": per_node,
        "AZ_BATCH_MASTER_NODE": f"127.0.0.1:{port}",
        "AZ_BATCHAI_MPI_MASTER_NODE": "127.0.0.1",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
