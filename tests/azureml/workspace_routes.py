"""Control plane: the workspace, its compute clusters and its datastores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.azureml.errors import not_found
from tests.azureml.resources import PROVIDER, W, paged, resource, system_data
from tests.azureml.state import ARTIFACT_CONTAINER, Compute, now
from tests.azureml.web import Answer, Request, Routes

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

routes = Routes()


@routes.add("GET", W)
def get_workspace(cloud: Cloud, request: Request) -> Answer:
    workspace = cloud.workspace
    group = workspace.prefix.partition("/providers/")[0]
    data_plane = workspace.data_plane
    return Answer(
        {
            "id": workspace.prefix,
            "name": workspace.name,
            "type": f"{PROVIDER}/workspaces",
            "location": workspace.location,
            "tags": {},
            "etag": None,
            "kind": "Default",
            "sku": {"name": "Basic", "tier": "Basic"},
            "identity": {"type": "SystemAssigned", "principalId": workspace.workspace_id,
                         "tenantId": workspace.tenant_id},
            "systemData": system_data(),
            "properties": {
                "friendlyName": workspace.name,
                "description": "",
                "storageAccount": f"{group}/providers/Microsoft.Storage/storageAccounts/{workspace.account}",
                "keyVault": f"{group}/providers/Microsoft.Keyvault/vaults/{workspace.account}",
                "hbiWorkspace": False,
                "tenantId": workspace.tenant_id,
                "provisioningState": "Succeeded",
                "workspaceId": workspace.workspace_id,
                "publicNetworkAccess": "Enabled",
                "discoveryUrl": f"{data_plane}/discovery",
                "mlFlowTrackingUri": data_plane.replace("https", "azureml") + f"/mlflow/v1.0{workspace.prefix}",
                "creationTime": now(),
            },
        }
    )  # fmt: skip


@routes.add("GET", "/discovery", "/discovery/workspaces/{id...}")
def discovery(cloud: Cloud, request: Request) -> Answer:
    data_plane = cloud.workspace.data_plane
    experiments = f"https://{cloud.workspace.location}.experiments.azureml.net"
    names = ("experimentation", "history", "hyperdrive", "labeling")
    return Answer({"api": data_plane, "studio": "https://ml.azure.com"} | dict.fromkeys(names, experiments))


def compute_resource(cloud: Cloud, compute: Compute) -> dict[str, Any]:
    """Returns a cluster as the service describes it."""
    counts = ("preparing", "running", "idle", "unusable", "leaving", "preempted")
    cluster = {
        "vmSize": compute.vm_size,
        "vmPriority": compute.vm_priority,
        "scaleSettings": {"maxNodeCount": compute.max_nodes, "minNodeCount": 0,
                          "nodeIdleTimeBeforeScaleDown": "PT2M"},
        "subnet": None,
        "currentNodeCount": 0,
        "targetNodeCount": 0,
        "nodeStateCounts": {f"{name}NodeCount": 0 for name in counts},
        "allocationState": "Steady",
        "allocationStateTransitionTime": now(),
        "errors": None,
        "remoteLoginPortPublicAccess": "Enabled",
        "osType": "Linux",
        "virtualMachineImage": None,
        "isolatedNetwork": False,
        "propertyBag": {},
    }  # fmt: skip
    properties = {
        "createdOn": now(),
        "modifiedOn": now(),
        "disableLocalAuth": False,
        "description": None,
        "resourceId": None,
        "computeType": "AmlCompute",
        "computeLocation": cloud.workspace.location,
        "provisioningState": compute.state,
        "provisioningErrors": None,
        "isAttachedCompute": False,
        "properties": cluster,
    }
    found = resource(cloud, "computes", f"computes/{compute.name}", properties)
    return {**found, "location": cloud.workspace.location, "tags": {}}


@routes.add("GET", f"{W}/computes")
def list_computes(cloud: Cloud, request: Request) -> Answer:
    return paged(cloud, request, [compute_resource(cloud, compute) for compute in cloud.state.computes.values()])


@routes.add("GET", W + "/computes/{name}")
def get_compute(cloud: Cloud, request: Request) -> Answer:
    compute = cloud.state.computes.get(request.parameters["name"])
    if compute is None:
        raise not_found(f"The specified resource was not found: compute {request.parameters['name']}.")
    return Answer(compute_resource(cloud, compute))


def datastore_containers(cloud: Cloud) -> dict[str, str]:
    """Returns the container behind each datastore."""
    return {"workspaceblobstore": cloud.workspace.default_container, "workspaceartifactstore": ARTIFACT_CONTAINER,
            **cloud.extra_datastores}  # fmt: skip


def datastore_resource(cloud: Cloud, name: str, container: str) -> dict[str, Any]:
    """Returns a datastore as the service describes it."""
    properties = {
        "description": None,
        "tags": None,
        "properties": None,
        "isDefault": name == "workspaceblobstore",
        "credentials": {"credentialsType": "None" if cloud.secrets == "None" else "AccountKey"},
        "subscriptionId": cloud.workspace.subscription_id,
        "resourceGroup": cloud.workspace.resource_group,
        "datastoreType": "AzureBlob",
        "accountName": cloud.workspace.account,
        "containerName": container,
        "endpoint": "core.windows.net",
        "protocol": "https",
        "serviceDataAccessAuthIdentity": "None",
    }
    return resource(cloud, "datastores", f"datastores/{name}", properties)


@routes.add("GET", f"{W}/datastores")
def list_datastores(cloud: Cloud, request: Request) -> Answer:
    found = [datastore_resource(cloud, *item) for item in datastore_containers(cloud).items()]
    if request.query.get("isDefault", "").lower() == "true":
        found = [store for store in found if store["properties"]["isDefault"]]
    return paged(cloud, request, found)


def container_of(cloud: Cloud, name: str) -> str:
    """Returns the container behind a datastore, or answers 404."""
    container = datastore_containers(cloud).get(name)
    if container is None:
        raise not_found(f"Could not find datastore: {name}")
    return container


@routes.add("GET", W + "/datastores/{name}")
def get_datastore(cloud: Cloud, request: Request) -> Answer:
    name = request.parameters["name"]
    return Answer(datastore_resource(cloud, name, container_of(cloud, name)))


@routes.add("POST", W + "/datastores/{name}/listSecrets")
def list_secrets(cloud: Cloud, request: Request) -> Answer:
    container_of(cloud, request.parameters["name"])
    if cloud.secrets == "AccountKey":
        return Answer({"secretsType": "AccountKey", "key": cloud.azurite.key})
    return Answer({"secretsType": "Sas", "sasToken": "?" + cloud.azurite.account_signature()})
