"""Control plane: jobs, and how the service describes them."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any

from tests.azureml.errors import bad_request, not_found
from tests.azureml.resources import ARM, PROVIDER, W, paged, seconds
from tests.azureml.state import Job
from tests.azureml.web import Answer, Request, Routes

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

ASSET_ID = re.compile(r"(?:.*/|azureml:)(codes|environments|data)/([^/]+)/versions/([^/]+)", re.IGNORECASE)
SHORT_ID = re.compile(r"azureml:([^:/]+):([^:/]+)")
CURATED = ("AzureML-", "azureml-", "acpt-")
NO_RESOURCES = {"instanceCount": 1, "maxInstanceCount": None, "instanceType": None, "locations": None,
                "properties": None, "shmSize": "2g", "dockerArgs": None}  # fmt: skip
routes = Routes()


def asset_key(kind: str, reference: str) -> tuple[str, str] | None:
    """Returns name and version from an asset's ARM id or short form, or None for anything else."""
    match = ASSET_ID.fullmatch(reference)
    if match and match[1].lower() == kind:
        return match[2], match[3]
    match = SHORT_ID.fullmatch(reference)
    return (match[1], match[2]) if match else None


@routes.add("PUT", W + "/jobs/{name}")
def put_job(cloud: Cloud, request: Request) -> Answer:
    name, body = request.parameters["name"], request.json["properties"]
    with cloud.state.lock:
        job = cloud.state.jobs.get(name)
        if job is None:
            _check_references(cloud, body)
            _check_limits(body)
            job = Job(name, body, api_version=request.query.get("api-version", ""))
            job.properties = _first_properties(job)
            cloud.state.jobs[name] = job
            answer = job_resource(cloud, job, is_new=True)
            cloud.jobs.submit(job)
        else:
            job.body |= {key: body[key] for key in ("displayName", "description", "isArchived") if key in body}
            answer = job_resource(cloud, job)
        job.tags |= body.get("tags") or {}
        answer["properties"]["tags"] = _tags(job)
    location = f"{ARM}{cloud.workspace.prefix}/jobs/{name}?api-version={request.query.get('api-version')}"
    return Answer(answer, 201, {"Location": location})


def _check_limits(body: dict[str, Any]) -> None:
    """Refuses what the service's page on limits does not allow."""
    tags = body.get("tags") or {}
    texts = {**tags, **(body.get("properties") or {})}
    if len(tags) > 50 or any(len(name) > 100 or len(str(text)) > 1000 for name, text in texts.items()):
        raise bad_request("There are more than 50 tags, or a name or value of one is too long.")
    if len(body.get("displayName") or "") > 255:
        raise bad_request("The display name is too long.")


def _first_properties(job: Job) -> dict[str, str]:
    """Returns the properties of a new job: those that were sent, and those that the service adds."""
    found = {**(job.body.get("properties") or {}), "ContentSnapshotId": str(uuid.uuid4())}
    if job.kind == "Command":
        return found | {"_azureml.ComputeTargetType": "amlctrain"}
    return found | {"primary_metric_config": _metric_config(job), "resume_from": "null", "runTemplate": "HyperDrive",
                    "azureml.runsource": "hyperdrive", "platform": "AML"}  # fmt: skip


def _metric_config(job: Job) -> str:
    objective = job.body["objective"]
    return json.dumps({"name": objective["primaryMetric"], "goal": objective["goal"]})


def _check_references(cloud: Cloud, body: dict[str, Any]) -> None:
    """Refuses a job whose compute, code, environment or data do not exist, as the service does."""
    compute = str(body.get("computeId") or "").rpartition("/")[2]
    if compute and compute not in cloud.state.computes:
        raise bad_request(f"Unknown compute target '{compute}'.", detail="UnknownTargetType")
    trial = body.get("trial") or body
    references = [("codes", trial.get("codeId")), ("environments", trial.get("environmentId"))]
    references += [("data", entry.get("uri")) for entry in (body.get("inputs") or {}).values()]
    for kind, reference in references:
        key = asset_key(kind, str(reference or ""))
        is_curated = kind == "environments" and key is not None and key[0].startswith(CURATED)
        if key is not None and key not in cloud.state.assets(kind) and not is_curated:
            raise bad_request(f"No asset with name {key[0]} and version {key[1]} in {kind}.", kind="NotFoundError")


@routes.add("GET", f"{W}/jobs")
def list_jobs(cloud: Cloud, request: Request) -> Answer:
    jobs = [job for job in list(cloud.state.jobs.values()) if job.parent is None][::-1]
    view = request.query.get("listViewType", "ActiveOnly")
    if view != "All":
        jobs = [job for job in jobs if bool(job.body.get("isArchived")) == (view == "ArchivedOnly")]
    return paged(cloud, request, [job_resource(cloud, job) for job in jobs])


def find_job(cloud: Cloud, name: str) -> Job:
    """Returns a job or a trial, or answers 404."""
    job = cloud.state.jobs.get(name)
    if job is None:
        raise not_found(f"Job {name} was not found in workspace {cloud.workspace.name}.")
    return job


@routes.add("GET", W + "/jobs/{name}")
def get_job(cloud: Cloud, request: Request) -> Answer:
    job = find_job(cloud, request.parameters["name"])
    answer = job_resource(cloud, job)
    if job.parent is not None:
        del answer["properties"]
    return Answer(answer)


@routes.add("POST", W + "/jobs/{name}/cancel")
def cancel_job(cloud: Cloud, request: Request) -> Answer:
    job = find_job(cloud, request.parameters["name"])
    if job.is_final:
        raise bad_request(f"Job {job.name} cannot be canceled: its status is {job.status}.")
    cloud.jobs.cancel(job)
    version = request.query.get("api-version")
    place = f"/subscriptions/{cloud.workspace.subscription_id}/providers/{PROVIDER}"
    place = f"{ARM}{place}/locations/{cloud.workspace.location}"
    return Answer(
        status=202,
        headers={
            "Location": f"{place}/mfeOperationResults/{job.name}?api-version={version}",
            "Azure-AsyncOperation": f"{place}/mfeOperationsStatus/{job.name}?api-version={version}",
            "Retry-After": "1",
        },
    )


LOCATIONS = "/subscriptions/{subscription}/providers/Microsoft.MachineLearningServices/locations/{location}"


@routes.add("GET", LOCATIONS + "/mfeOperationsStatus/{name}")
def operation_status(cloud: Cloud, request: Request) -> Answer:
    is_done = find_job(cloud, request.parameters["name"]).is_final
    return Answer({"id": request.path, "status": "Succeeded" if is_done else "InProgress"},
                  headers={"Retry-After": "1"})  # fmt: skip


@routes.add("GET", LOCATIONS + "/mfeOperationResults/{name}")
def operation_result(cloud: Cloud, request: Request) -> Answer:
    is_done = find_job(cloud, request.parameters["name"]).is_final
    return Answer(status=200 if is_done else 202, headers={"Retry-After": "1"})


@routes.add("DELETE", W + "/jobs/{name}")
def delete_job(cloud: Cloud, request: Request) -> Answer:
    find_job(cloud, request.parameters["name"])
    del cloud.state.jobs[request.parameters["name"]]
    return Answer(status=204)


def job_resource(cloud: Cloud, job: Job, *, is_new: bool = False) -> dict[str, Any]:
    """Returns a job as the service describes it: what was sent, completed."""
    properties: dict[str, Any] = {"description": None, "identity": None, "componentId": None, "computeId": None,
                                  "isArchived": False, "notificationSetting": None, "inputs": {},
                                  "secretsConfiguration": None}  # fmt: skip
    properties |= job.body
    status = "Running" if is_new and job.kind == "Sweep" else job.status
    properties |= {
        "tags": _tags(job),
        "properties": dict(job.properties),
        "displayName": job.body.get("displayName") or job.name,
        "experimentName": job.experiment,
        "status": status,
        "services": {**(job.body.get("services") or {}), **_services(cloud, job)},
        "inputs": {name: {"description": None, **entry} for name, entry in (job.body.get("inputs") or {}).items()},
        "outputs": _outputs(job),
        "resources": {**NO_RESOURCES, **(job.body.get("resources") or {})},
    }
    if job.kind == "Sweep":
        _complete_sweep(properties)
    else:
        properties = {"distribution": None, "limits": None, "codeId": None, "parameters": {}} | properties
    system = {"createdAt": job.created, "createdBy": "Stand-in", "createdByType": "User"}
    return {"id": f"{cloud.workspace.prefix}/jobs/{job.name}", "name": job.name, "properties": properties,
            "type": f"{PROVIDER}/workspaces/jobs", "systemData": system}  # fmt: skip


def _complete_sweep(properties: dict[str, Any]) -> None:
    objective = dict(properties["objective"])
    objective["goal"] = str(objective["goal"]).capitalize()
    sampling = {"seed": None, "logbase": None, "rule": "Random"} | properties["samplingAlgorithm"]
    trial = {"distribution": None, "resources": dict(NO_RESOURCES)} | properties["trial"]
    properties["limits"] = {"trialTimeout": None} | properties.get("limits", {})
    properties.setdefault("queueSettings", {"jobTier": "Null", "priority": None})
    properties |= {"objective": objective, "samplingAlgorithm": sampling, "trial": trial,
                   "earlyTermination": properties.get("earlyTermination"), "componentConfiguration": None}  # fmt: skip


def _outputs(job: Job) -> dict[str, Any]:
    """Returns the named outputs, without their addresses as in the service, and the default one."""
    found = {name: {**entry, "uri": None} for name, entry in (job.body.get("outputs") or {}).items()}
    default = {"description": None, "assetName": None, "assetVersion": None, "mode": "ReadWriteMount",
               "pathOnCompute": None, "autoDeleteSetting": None, "jobOutputType": "uri_folder",
               "uri": f"azureml://datastores/workspaceartifactstore/{job.artifact_prefix.rstrip('/')}"}  # fmt: skip
    return found | {"default": default}


def _services(cloud: Cloud, job: Job) -> dict[str, Any]:
    nothing = {"port": None, "status": None, "errorMessage": None, "properties": None, "nodes": None}
    where = cloud.workspace.prefix.replace("resourceGroups", "resourcegroups")
    where = where.replace(f"/providers/{PROVIDER}", "")
    studio = {"jobServiceType": "Studio", "endpoint": f"https://ml.azure.com/runs/{job.name}?wsid={where}"}
    if job.kind == "Sweep":
        return {"Studio": nothing | studio}
    address = cloud.workspace.data_plane.replace("https", "azureml")
    tracking = {"jobServiceType": "Tracking", "endpoint": f"{address}/mlflow/v1.0{cloud.workspace.prefix}?"}
    return {"Tracking": nothing | tracking, "Studio": nothing | studio}


def _tags(job: Job) -> dict[str, str]:
    if job.kind != "Sweep":
        return dict(job.tags)
    limits = job.body.get("limits") or {}
    generator = {"name": str(job.body["samplingAlgorithm"]["samplingAlgorithmType"]).upper(),
                 "parameter_space": job.body["searchSpace"], "properties": {}}  # fmt: skip
    policy = job.body.get("earlyTermination") or {}
    return {
        **job.tags,
        "_aml_system_max_concurrent_jobs": str(limits.get("maxConcurrentTrials")),
        "_aml_system_max_total_jobs": str(limits.get("maxTotalTrials")),
        "_aml_system_generator_config": json.dumps(generator),
        "_aml_system_primary_metric_config": _metric_config(job),
        "_aml_system_policy_config": json.dumps({"name": policy.get("policyType", "Default"), "properties": policy}),
        "_aml_system_max_duration_minutes": f"{seconds(limits.get('timeout')) / 60:g}",
        "_aml_system_resume_child_runs": "null",
        "_aml_system_all_jobs_generated": str(bool(job.children)).lower(),
        "_aml_system_cancellation_requested": str(job.is_cancel_requested).lower(),
        "_aml_system_samples_generated_count": str(len(job.children)),
    }
