"""Data plane: MLflow's own interface, answered by a real MLflow server under AzureML's run ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tests.azureml.job_routes import find_job
from tests.azureml.resources import W
from tests.azureml.state import Job, now
from tests.azureml.web import Answer, Request, Routes

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

ROOTS = (f"/mlflow/v1.0{W}", f"/mlflow/v2.0{W}")
STATUSES = {"FINISHED": "Completed", "FAILED": "Failed", "KILLED": "Canceled", "RUNNING": "Running"}
routes = Routes()


@routes.add("POST", *(root + "/api/2.0/preview/mlflow/runs/log-batch-async" for root in ROOTS))
def log_batch_async(cloud: Cloud, request: Request) -> Answer:
    """AzureML's own addition: it is answered at once, with nothing to wait for."""
    answer = _ask(cloud, "POST", "/api/2.0/mlflow/runs/log-batch", request)
    return Answer({}) if answer.status == 200 else answer


@routes.add("POST", *(root + "/api/2.0/mlflow/runs/create" for root in ROOTS))
def create_run(cloud: Cloud, request: Request) -> Answer:
    """Starts a run outside a job: it gets an entry in run history too."""
    created = cloud.mlflow.ask("POST", "/api/2.0/mlflow/runs/create", request.json)
    if created.status != 200:
        return Answer(created.body, created.status)
    run = created.body["run"]
    found = cloud.mlflow.ask("GET", f"/api/2.0/mlflow/experiments/get?experiment_id={run['info']['experiment_id']}")
    name = run["info"]["run_id"]
    body = {"jobType": "Command", "experimentName": found.body["experiment"]["name"],
            "displayName": run["info"].get("run_name") or name}  # fmt: skip
    job = Job(name, body, status="Running", started=now(), is_interactive=True)
    job.tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
    cloud.state.jobs[name] = job
    return Answer(_translated(cloud, created.body))


@routes.add("POST", *(root + "/api/2.0/mlflow/runs/update" for root in ROOTS))
def update_run(cloud: Cloud, request: Request) -> Answer:
    job = find_job(cloud, request.json.get("run_id") or request.json["run_uuid"])
    answer = _ask(cloud, "POST", "/api/2.0/mlflow/runs/update", request)
    if answer.status == 200 and job.is_interactive and "status" in request.json:
        job.status = STATUSES.get(request.json["status"], job.status)
        job.ended = now() if job.is_final else None
    if answer.status == 200 and request.json.get("run_name"):
        job.body["displayName"] = request.json["run_name"]
    return answer


@routes.add("POST", *(root + "/api/2.0/mlflow/runs/set-tag" for root in ROOTS))
def set_tag(cloud: Cloud, request: Request) -> Answer:
    answer = _ask(cloud, "POST", "/api/2.0/mlflow/runs/set-tag", request)
    job = cloud.state.jobs.get(request.json.get("run_id", ""))
    if answer.status == 200 and job is not None:
        job.tags[request.json["key"]] = request.json["value"]
        if request.json["key"] == "mlflow.runName":
            job.body["displayName"] = request.json["value"]
    return answer


@routes.add("POST", *(root + "/api/2.0/mlflow/runs/log-batch" for root in ROOTS))
def log_batch(cloud: Cloud, request: Request) -> Answer:
    answer = _ask(cloud, "POST", "/api/2.0/mlflow/runs/log-batch", request)
    job = cloud.state.jobs.get(request.json.get("run_id", ""))
    if answer.status == 200 and job is not None:
        job.tags |= {tag["key"]: tag["value"] for tag in request.json.get("tags", [])}
    return answer


@routes.add("GET|POST|PATCH|DELETE", *(root + "/api/{rest...}" for root in ROOTS))
def forward(cloud: Cloud, request: Request) -> Answer:
    return _ask(cloud, request.method, "/api/" + request.parameters["rest"], request)


def _ask(cloud: Cloud, method: str, path: str, request: Request) -> Answer:
    """Returns what MLflow answers to the request, with the run ids translated in both directions."""
    query = {name: _mlflow_id(cloud, value) if name in ("run_id", "run_uuid") else value
             for name, value in request.query.items()}  # fmt: skip
    body = request.json if request.body else None
    if isinstance(body, dict):
        body = {name: _mlflow_id(cloud, value) if name in ("run_id", "run_uuid") and value else value
                for name, value in body.items()}  # fmt: skip
    answer = cloud.mlflow.ask(method, path + ("?" + urlencode(query) if query else ""), body)
    return Answer(_translated(cloud, answer.body), answer.status)


def _mlflow_id(cloud: Cloud, run: str) -> str:
    job = cloud.state.jobs.get(run)
    if job is None or job.is_interactive:
        return run
    display_name = str(job.body.get("displayName") or job.name)
    return cloud.mlflow.mlflow_id(run, experiment=job.experiment, display_name=display_name, parent=job.parent)


def _translated(cloud: Cloud, value: Any) -> Any:
    """Returns an answer of MLflow with AzureML's run ids and addresses of artifacts."""
    if isinstance(value, list):
        return [_translated(cloud, item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: _translated(cloud, item) for name, item in value.items()}
    for name in ("run_id", "run_uuid"):
        if isinstance(found.get(name), str):
            found[name] = cloud.mlflow.run_name(found[name])
    job = cloud.state.jobs.get(found.get("run_id", ""))
    if job is not None and "artifact_uri" in found:
        found["artifact_uri"] = f"azureml://experiments/{job.experiment}/runs/{job.name}/artifacts"
    return found
