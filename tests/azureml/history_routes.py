"""Data plane: run history, which knows the state, the logs and the artifacts of each run."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from tests.azureml.errors import not_found
from tests.azureml.job_routes import find_job
from tests.azureml.resources import W
from tests.azureml.state import ARTIFACT_CONTAINER, Job
from tests.azureml.web import Answer, Request, Routes

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

H = f"/history/v1.0{W}"
RUN = H + "/experiments/{experiment}/runs/{run}"
RUN_BY_ID = H + "/experimentids/{experiment}/runs/{run}"
LOG_FOLDERS = ("user_logs/", "system_logs/", "logs/")
PASCAL_TYPES = {"uri_folder": "UriFolder", "uri_file": "UriFile", "mltable": "MLTable"}
routes = Routes()


def experiment_id(name: str) -> str:
    """Returns the id of an experiment, which is the same in every test."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def run_record(cloud: Cloud, job: Job) -> dict[str, Any]:
    """Returns a run as run history describes it."""
    root = job.parent or job.name
    is_sweep = job.kind == "Sweep"
    properties = {"azureml.DevPlatv2": "true", "_azureml.ComputeTargetType": "amlctrain", **job.properties}
    return {
        "runNumber": 1 + list(cloud.state.jobs).index(job.name),
        "rootRunId": root,
        "createdUtc": job.created,
        "token": None,
        "error": _error(job),
        "warnings": None,
        "revision": 1,
        "runUuid": str(uuid.uuid5(uuid.NAMESPACE_URL, job.name)),
        "currentAttemptId": job.attempt + 1,
        "runId": job.name,
        "parentRunId": job.parent,
        "experimentId": experiment_id(job.experiment),
        "status": job.status,
        "startTimeUtc": job.started,
        "endTimeUtc": job.ended,
        "displayName": job.body.get("displayName") or job.name,
        "name": job.experiment,
        "dataContainerId": f"dcid.{job.name}",
        "description": job.body.get("description"),
        "hidden": False,
        "runType": "azureml.HyperDrive" if is_sweep else "azureml.scriptrun",
        "runTypeV2": {"orchestrator": "HyperDrive" if is_sweep else "Execution", "traits": [], "attribution": None,
                      "computeType": "AmlcTrain"},
        "properties": properties,
        "parameters": dict(job.parameters),
        "target": str(job.body.get("computeId") or "").rpartition("/")[2],
        "tags": dict(job.tags),
        "inputDatasets": [],
        "outputDatasets": [],
        "runDefinition": None,
        "jobSpecification": None,
        "inputs": None,
        "outputs": _named_outputs(cloud, job) or None,
    }  # fmt: skip


def _error(job: Job) -> dict[str, Any] | None:
    if job.error is None:
        return None
    inner = {"code": "UserError", "message": job.error, "messageParameters": {}, "details": []}
    return {"error": inner, "correlation": {}, "environment": "eastus", "location": "eastus", "time": job.ended}


def _named_outputs(cloud: Cloud, job: Job) -> dict[str, Any]:
    where = f"azureml://locations/{cloud.workspace.location}/workspaces/{cloud.workspace.workspace_id}"
    return {
        name: {"assetId": f"{where}/data/azureml_{job.name}_output_data_{name}/versions/1",
               "type": PASCAL_TYPES.get(entry["jobOutputType"], entry["jobOutputType"])}
        for name, entry in (job.body.get("outputs") or {}).items()
    }  # fmt: skip


@routes.add("GET", H + "/runs/{run}", RUN, RUN_BY_ID)
def get_run(cloud: Cloud, request: Request) -> Answer:
    return Answer(run_record(cloud, find_job(cloud, request.parameters["run"])))


@routes.add("PATCH", H + "/runs/{run}", RUN, RUN_BY_ID)
def patch_run(cloud: Cloud, request: Request) -> Answer:
    job, change = find_job(cloud, request.parameters["run"]), request.json
    for key in ("displayName", "description"):
        if key in change:
            job.body[key] = change[key]
    if "hidden" in change:
        job.body["isArchived"] = change["hidden"]
    job.tags |= change.get("tags") or {}
    job.properties |= change.get("properties") or {}
    return Answer(run_record(cloud, job))


@routes.add("GET", H + "/runs/{run}/details", RUN + "/details", RUN_BY_ID + "/details")
def get_details(cloud: Cloud, request: Request) -> Answer:
    job = find_job(cloud, request.parameters["run"])
    return Answer(
        {
            "runId": job.name,
            "target": str(job.body.get("computeId") or "").rpartition("/")[2],
            "status": job.status,
            "startTimeUtc": job.started,
            "endTimeUtc": job.ended,
            "error": _error(job),
            "warnings": None,
            "properties": dict(job.properties),
            "parameters": dict(job.parameters),
            "inputDatasets": [],
            "outputDatasets": [],
            "runDefinition": None,
            "logFiles": {name: blob_address(cloud, job, name) for name in artifact_names(cloud, job, LOG_FOLDERS)},
            "submittedBy": "Stand-in",
        }
    )


def artifact_names(cloud: Cloud, job: Job, folders: tuple[str, ...] = ("",)) -> list[str]:
    """Returns the names of a run's artifacts, relative to the run."""
    names = [name.removeprefix(job.artifact_prefix) for name in
             cloud.azurite.names(ARTIFACT_CONTAINER, job.artifact_prefix)]  # fmt: skip
    return [name for name in names if name.startswith(folders)]


def blob_address(cloud: Cloud, job: Job, name: str, *, permission: str = "r") -> str:
    """Returns the signed address of one artifact."""
    blob = job.artifact_prefix + name
    signature = cloud.azurite.signature(ARTIFACT_CONTAINER, blob, permission=permission)
    return f"{cloud.workspace.blob_address}/{ARTIFACT_CONTAINER}/{blob}?{signature}"


@routes.add("GET", H + "/runs/{run}/children", RUN + "/children", RUN_BY_ID + "/children")
def get_children(cloud: Cloud, request: Request) -> Answer:
    parent = find_job(cloud, request.parameters["run"])
    records = [run_record(cloud, cloud.state.jobs[name]) for name in parent.children]
    start = int(request.query.get("$continuationtoken", 0))
    body: dict[str, Any] = {"value": records[start : start + cloud.page_size]}
    if start + cloud.page_size < len(records):
        body["continuationToken"] = str(start + cloud.page_size)
        body["nextLink"] = f"https://{request.host}{request.path}?$continuationtoken={start + cloud.page_size}"
    return Answer(body)


@routes.add("POST", f"{H}/rundata")
def get_run_data(cloud: Cloud, request: Request) -> Answer:
    record = run_record(cloud, find_job(cloud, request.json["runId"]))
    return Answer({"runMetadata": record, "runDefinition": None, "jobSpecification": None, "systemSettings": None})


@routes.add("GET", RUN + "/artifacts", RUN_BY_ID + "/artifacts", RUN + "/artifacts/path", RUN_BY_ID + "/artifacts/path")
def list_artifacts(cloud: Cloud, request: Request) -> Answer:
    job = find_job(cloud, request.parameters["run"])
    prefix = request.query.get("path", "").strip("/")
    names = [name for name in artifact_names(cloud, job) if not prefix or f"{name}/".startswith(f"{prefix}/")]
    return Answer({"value": [_artifact(job, name) for name in names], "continuationToken": None, "nextLink": None})


def _artifact(job: Job, name: str) -> dict[str, Any]:
    container = f"dcid.{job.name}"
    return {"artifactId": f"ExperimentRun/{container}/{name}", "origin": "ExperimentRun", "container": container,
            "path": name, "etag": None, "createdTime": job.created, "dataPath": None, "tags": {}}  # fmt: skip


@routes.add("GET", RUN + "/artifacts/contentinfo", RUN_BY_ID + "/artifacts/contentinfo")
def get_content_information(cloud: Cloud, request: Request) -> Answer:
    job, path = find_job(cloud, request.parameters["run"]), request.query["path"]
    if not cloud.azurite.has(ARTIFACT_CONTAINER, job.artifact_prefix + path):
        raise not_found(f"Artifact {path} of run {job.name} was not found.")
    return Answer({"contentUri": blob_address(cloud, job, path), "origin": "ExperimentRun", "path": path,
                   "container": f"dcid.{job.name}"})  # fmt: skip


@routes.add("GET", RUN + "/artifacts/prefix/contentinfo", RUN_BY_ID + "/artifacts/prefix/contentinfo")
def list_content_information(cloud: Cloud, request: Request) -> Answer:
    job, prefix = find_job(cloud, request.parameters["run"]), request.query.get("path", "")
    names = [name for name in artifact_names(cloud, job) if name.startswith(prefix)]
    start = int(request.query.get("continuationToken", 0))
    page = names[start : start + cloud.page_size]
    following = start + len(page)
    return Answer({"value": [{**_artifact(job, name), "contentUri": blob_address(cloud, job, name)} for name in page],
                   "continuationToken": str(following) if following < len(names) else None})  # fmt: skip


@routes.add("POST", RUN + "/artifacts/batch/metadata", RUN_BY_ID + "/artifacts/batch/metadata")
def create_artifacts(cloud: Cloud, request: Request) -> Answer:
    """Hands out writable addresses; the blobs themselves come into being when they are written."""
    job = find_job(cloud, request.parameters["run"])
    paths = [entry["path"] for entry in request.json["paths"]]
    information = {
        path: {"contentUri": blob_address(cloud, job, path, permission="racw"), "path": path,
               "origin": "ExperimentRun", "container": f"dcid.{job.name}"}
        for path in paths
    }  # fmt: skip
    artifacts = {path: _artifact(job, path) for path in paths}
    return Answer({"artifacts": artifacts, "artifactContentInformation": information, "errors": {}})
