"""Control plane: versions of code, environments, data and models."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import yaml

from tests.azureml.errors import bad_request, not_found
from tests.azureml.resources import ARM, W, long_uri, paged, resource
from tests.azureml.state import Asset
from tests.azureml.web import Answer, Request, Routes

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

KINDS = ("codes", "environments", "data", "models")
CODE_PERMISSION = "rcwl"
routes = Routes()


def _paths(suffix: str) -> list[str]:
    return [f"{W}/{kind}{suffix}" for kind in KINDS]


def _kind(request: Request) -> str:
    return next(kind for kind in KINDS if f"/{kind}" in request.path.partition("/workspaces/")[2])


@routes.add("GET", *_paths(""))
def list_containers(cloud: Cloud, request: Request) -> Answer:
    kind = _kind(request)
    names = list(dict.fromkeys(name for name, _ in cloud.state.assets(kind)))
    return paged(cloud, request, [_container(cloud, kind, name) for name in names])


@routes.add("GET", *_paths("/{name}"))
def get_container(cloud: Cloud, request: Request) -> Answer:
    return Answer(_container(cloud, _kind(request), request.parameters["name"]))


def _container(cloud: Cloud, kind: str, name: str) -> Asset:
    versions = [version for known, version in cloud.state.assets(kind) if known == name]
    if not versions:
        raise not_found(f"{kind} container {name} was not found.")
    following = max((int(version) for version in versions if version.isdigit()), default=0) + 1
    properties: dict[str, Any] = {"description": None, "tags": {}, "properties": {}, "isArchived": False,
                                  "latestVersion": versions[-1], "nextVersion": str(following)}  # fmt: skip
    if kind == "data":
        properties["dataType"] = cloud.state.data[name, versions[-1]]["properties"]["dataType"]
    return resource(cloud, kind, f"{kind}/{name}", properties)


@routes.add("GET", *_paths("/{name}/versions"))
def list_versions(cloud: Cloud, request: Request) -> Answer:
    kind, name = _kind(request), request.parameters["name"]
    assets = cloud.state.assets(kind)
    if "hash" in request.query:
        # The service looks through the whole workspace, whatever name is in the path.
        wanted = (request.query["hash"], request.query.get("hashVersion"))
        found = [asset for asset in assets.values() if _hash(asset) == wanted]
    else:
        found = [asset for (known, _), asset in assets.items() if known == name]
        if not found:
            raise not_found(f"{kind} container {name} was not found.")
    return paged(cloud, request, found[::-1])


def _hash(asset: Asset) -> tuple[str | None, str | None]:
    properties = asset["properties"].get("properties") or {}
    return properties.get("hash_sha256"), properties.get("hash_version")


@routes.add("GET", *_paths("/{name}/versions/{version}"))
def get_version(cloud: Cloud, request: Request) -> Answer:
    kind, name, version = _kind(request), request.parameters["name"], request.parameters["version"]
    asset = cloud.state.assets(kind).get((name, version))
    if asset is None:
        if kind == "data":
            raise not_found(f"Data version {name}:{version} (dataContainerName:version) not found.")
        raise not_found(f"No asset with name {name} and version {version} in {kind}.")
    return Answer(asset)


@routes.add("PUT", *_paths("/{name}/versions/{version}"))
def put_version(cloud: Cloud, request: Request) -> Answer:
    kind, name, version = _kind(request), request.parameters["name"], request.parameters["version"]
    path = f"{kind}/{name}/versions/{version}"
    properties = {"description": None, "tags": {}, "properties": {}, "isArchived": False, "isAnonymous": False}
    properties |= request.json["properties"]
    properties["properties"] = {key: str(value) for key, value in (properties["properties"] or {}).items()}
    complete = {"codes": _complete_code, "environments": _complete_environment, "data": _complete_data}.get(kind)
    if complete:
        complete(cloud, properties)
    asset = resource(cloud, f"{kind}/versions", path, properties)
    with cloud.state.lock:
        before = cloud.state.assets(kind).get((name, version))
        if before is not None and not _is_same(before, asset):
            raise bad_request(f"A version {version} of {name} with other content exists already.")
        cloud.state.assets(kind)[name, version] = asset
    location = f"{ARM}{cloud.workspace.prefix}/{path}?api-version={request.query.get('api-version')}"
    return Answer(asset, 201, {"Location": location})


def _is_same(before: Asset, after: Asset) -> bool:
    """Returns True if only what may change of a version has changed."""
    fixed = ("codeUri", "condaFile", "image", "build", "dataUri", "dataType", "modelUri")
    return all(before["properties"].get(key) == after["properties"].get(key) for key in fixed)


def _complete_code(cloud: Cloud, properties: dict[str, Any]) -> None:
    properties["provisioningState"] = "Succeeded"


def _complete_environment(cloud: Cloud, properties: dict[str, Any]) -> None:
    properties |= {"environmentType": "UserCreated", "osType": properties.get("osType", "Linux"),
                   "autoRebuild": "Disabled", "provisioningState": "Succeeded", "stage": "Development"}  # fmt: skip
    properties["properties"]["azureml.labels"] = "latest"
    if properties.get("condaFile"):
        properties["condaFile"] = json.dumps(yaml.safe_load(properties["condaFile"]), indent=2)


def _complete_data(cloud: Cloud, properties: dict[str, Any]) -> None:
    uri = long_uri(cloud, properties["dataUri"])
    if properties["dataType"] == "uri_folder" and not uri.endswith("/"):
        uri += "/"
    properties |= {"dataUri": uri, "autoDeleteSetting": None, "stage": None, "intellectualProperty": None}


@routes.add("POST", W + "/codes/{name}/versions/{version}/startPendingUpload")
def start_pending_upload(cloud: Cloud, request: Request) -> Answer:
    container = f"{uuid.uuid4()}-{uuid.uuid4().hex[:26]}"
    cloud.azurite.make_container(container)
    address = cloud.workspace.blob_address
    signature = cloud.azurite.signature(container, permission=CODE_PERMISSION)
    group = cloud.workspace.prefix.partition("/providers/")[0]
    return Answer(
        {
            "blobReferenceForConsumption": {
                "blobUri": f"{address}:443/{container}",
                "storageAccountArmId": f"{group}/providers/Microsoft.Storage/storageAccounts/{cloud.workspace.account}",
                "credential": {"credentialType": "SAS", "sasUri": f"{address}/{container}?{signature}"},
            },
            "pendingUploadId": str(uuid.uuid4()),
            "pendingUploadType": "None",
        }
    )
