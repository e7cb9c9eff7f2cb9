"""Jobs in AzureML: created from a body through the SDK, looked at, and cancelled."""

from __future__ import annotations

import copy
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from health_ml.azure.logs import FINAL_STATUSES
from health_ml.azure.sweep_body import seconds_of
from health_ml.errors import RunNotFoundError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Command, Job
    from azure.ai.ml.sweep import SweepJob

    from health_ml.azure.job_datasets import ResolvedInput
    from health_ml.planning.plan import Provenance


def new_job_name(model_name: str) -> str:
    """Returns a name for a job that no other has. It is the run id, and says when and what.

    In small letters, because the SDK turns the name of a job into these, but not that of a sweep job.
    """
    now = datetime.now(timezone.utc).strftime("%Y%m%dt%H%M%Sz")
    model = re.sub(r"[^a-z0-9_-]", "", model_name.lower()).strip("_-") or "run"
    return f"{model}_{now}_{secrets.token_hex(4)}"


def submit_body(
    body: Mapping[str, Any], *, code_id: str, environment_id: str, inputs: Mapping[str, ResolvedInput]
) -> dict[str, Any]:
    """Returns the body of a job with the ids that only the service knows."""
    complete = copy.deepcopy(dict(body))
    program = complete.get("trial", complete)
    program |= {"codeId": code_id, "environmentId": environment_id}
    for name, resolved in inputs.items():
        complete["inputs"][name] |= {"uri": resolved.uri, "jobInputType": resolved.kind}
    return complete


def create_job(client: MLClient, name: str, body: Mapping[str, Any]) -> Job:
    """Returns the job after creating it from its complete body. Repeating it with the same name does no harm.

    :raises azure.core.exceptions.AzureError: If the service refuses it.
    """
    job = _sweep(name, body) if body["jobType"] == "Sweep" else _command(name, body)
    # The plan was checked before, and the service checks the body; the SDK would build its schema of everything.
    created: Job = client.jobs.create_or_update(job, skip_validation=True)
    return created


def git_variables(provenance: Provenance | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that tell the SDK which version of the code travels, without those that are set already.

    Otherwise it asks git five times, and about the repository of the working directory, whatever travels.
    """
    if provenance is None:
        return {}
    known = {
        "AZUREML_GIT_REPOSITORY_URI": provenance.remote,
        "AZUREML_GIT_BRANCH": provenance.branch,
        "AZUREML_GIT_COMMIT": provenance.commit,
        "AZUREML_GIT_DIRTY": str(provenance.is_dirty),
    }
    return {name: value for name, value in known.items() if value and not environ.get(name)}


def get_job(client: MLClient, name: str) -> Job:
    """Returns a job as the SDK describes it.

    :raises RunNotFoundError: If there is none of the name.
    """
    from azure.core.exceptions import ResourceNotFoundError

    try:
        job: Job = client.jobs.get(name)
    except ResourceNotFoundError as error:
        if f"workspaces/{client.workspace_name}'" in str(error):
            raise
        raise RunNotFoundError(
            f"The workspace {client.workspace_name} has no run {name!r}.",
            "The id of a run is the name of its job in the studio; --workspace_config_path names another workspace.",
        ) from error
    return job


def cancel_job(client: MLClient, name: str) -> None:
    """Cancels a job and waits until the service has accepted that; a job that has ended is left alone."""
    from azure.core.exceptions import HttpResponseError

    try:
        client.jobs.begin_cancel(name, polling=False)  # otherwise a thread asks for minutes whether it is done
    except HttpResponseError as error:
        # The answer for a job that has ended meanwhile, among others.
        if error.status_code != 400 or client.jobs.get(name).status not in FINAL_STATUSES:
            raise


def wait_until(is_over: Callable[[], bool], timeout_seconds: float | None, *, poll_seconds: float) -> bool:
    """Returns whether a condition has become true within a time."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while not is_over():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        remaining = poll_seconds if deadline is None else max(0.0, deadline - time.monotonic())
        time.sleep(min(poll_seconds, remaining))
    return True


# --- from a body to what the SDK takes --------------------------------------------------------------------------------


def _command(name: str, body: Mapping[str, Any]) -> Command:
    from azure.ai.ml import command
    from azure.ai.ml.entities import CommandJobLimits

    # The SDK submits no CommandJob, only what this function makes.
    program, where = _program(body), _where(body)
    resources, queue = program.pop("resources"), where.pop("queue_settings", None)
    services = {name: _service(service) for name, service in body.get("services", {}).items()}
    job = command(services=services or None, **_common(body), **program, **where)
    job.name = name
    job.resources = resources
    if queue is not None:
        job.queue_settings = queue
    if "limits" in body:
        job.limits = CommandJobLimits(timeout=seconds_of(body["limits"]["timeout"]))
    return job


def _sweep(name: str, body: Mapping[str, Any]) -> SweepJob:
    from azure.ai.ml.entities import CommandJob
    from azure.ai.ml.sweep import Objective, SweepJob, SweepJobLimits

    limits = body["limits"]
    durations = {"timeout": "timeout", "trialTimeout": "trial_timeout"}
    return SweepJob(
        name=name,
        trial=CommandJob(**_program(body["trial"])),
        search_space={name: _distribution(expression) for name, expression in body["searchSpace"].items()},
        sampling_algorithm=_sampling(body["samplingAlgorithm"]),
        objective=Objective(goal=body["objective"]["goal"], primary_metric=body["objective"]["primaryMetric"]),
        limits=SweepJobLimits(
            max_total_trials=limits["maxTotalTrials"],
            max_concurrent_trials=limits.get("maxConcurrentTrials"),
            **{theirs: seconds_of(limits[ours]) for ours, theirs in durations.items() if ours in limits},
        ),
        early_termination=_early_termination(body.get("earlyTermination")),
        resources=_resources(body["resources"]),
        **_common(body),
        **_where(body),
    )


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    from azure.ai.ml import Input, Output
    from azure.ai.ml.entities import UserIdentityConfiguration

    input_modes = {"ReadOnlyMount": "ro_mount", "Download": "download"}
    output_modes = {"ReadWriteMount": "rw_mount", "Upload": "upload"}
    return {
        "display_name": body["displayName"],
        "experiment_name": body["experimentName"],
        "tags": dict(body["tags"]),
        "properties": dict(body["properties"]),
        "identity": UserIdentityConfiguration() if "identity" in body else None,
        "inputs": {
            name: Input(type=entry["jobInputType"], path=entry["uri"], mode=input_modes[entry["mode"]])
            for name, entry in body["inputs"].items()
        },
        "outputs": {
            name: Output(
                type=entry["jobOutputType"],
                path=entry.get("uri"),
                mode=output_modes[entry["mode"]],
                name=entry.get("assetName"),
                version=entry.get("assetVersion"),
            )
            for name, entry in body["outputs"].items()
        },
    }


def _where(body: Mapping[str, Any]) -> dict[str, Any]:
    from azure.ai.ml.entities import QueueSettings

    priorities = {1: "low", 2: "medium", 3: "high"}
    found: dict[str, Any] = {"compute": body.get("computeId")}
    if "queueSettings" in body:
        queue = body["queueSettings"]
        found["queue_settings"] = QueueSettings(
            job_tier=queue["jobTier"].lower() if "jobTier" in queue else None,
            priority=priorities[queue["priority"]] if "priority" in queue else None,
        )
    return found


def _program(program: Mapping[str, Any]) -> dict[str, Any]:
    from azure.ai.ml import MpiDistribution

    has_several = "distribution" in program
    return {
        "command": program["command"],
        "code": program["codeId"],
        "environment": program["environmentId"],
        "environment_variables": dict(program["environmentVariables"]),
        "resources": _resources(program["resources"]),
        "distribution": MpiDistribution(process_count_per_instance=program["distribution"]["processCountPerInstance"])
        if has_several
        else None,
    }


def _resources(resources: Mapping[str, Any]) -> Any:
    from azure.ai.ml.entities import JobResourceConfiguration

    return JobResourceConfiguration(
        instance_count=resources["instanceCount"],
        shm_size=resources.get("shmSize"),
        instance_type=resources.get("instanceType"),
    )


def _service(service: Mapping[str, Any]) -> Any:
    from azure.ai.ml.entities import JupyterLabJobService, SshJobService, TensorBoardJobService, VsCodeJobService

    properties = service.get("properties", {})
    match service["jobServiceType"]:
        case "JupyterLab":
            return JupyterLabJobService()
        case "VSCode":
            return VsCodeJobService()
        case "TensorBoard":
            return TensorBoardJobService(log_dir=properties["logDir"])
    return SshJobService(ssh_public_keys=properties["sshPublicKeys"])


def _distribution(expression: list[Any]) -> Any:
    from azure.ai.ml import sweep

    kind, arguments = expression
    match kind:
        case "choice":
            return sweep.Choice(values=arguments[0])
        case "uniform" | "loguniform":
            cls = {"uniform": sweep.Uniform, "loguniform": sweep.LogUniform}[kind]
            return cls(min_value=arguments[0], max_value=arguments[1])
        case "quniform" | "qloguniform":
            quantised = {"quniform": sweep.QUniform, "qloguniform": sweep.QLogUniform}[kind]
            return quantised(min_value=arguments[0], max_value=arguments[1], q=arguments[2])
        case "normal" | "lognormal":
            return {"normal": sweep.Normal, "lognormal": sweep.LogNormal}[kind](mu=arguments[0], sigma=arguments[1])
    rounded = {"qnormal": sweep.QNormal, "qlognormal": sweep.QLogNormal}[kind]
    return rounded(mu=arguments[0], sigma=arguments[1], q=arguments[2])


def _sampling(body: Mapping[str, Any]) -> Any:
    from azure.ai.ml.sweep import BayesianSamplingAlgorithm, GridSamplingAlgorithm, RandomSamplingAlgorithm

    match body["samplingAlgorithmType"]:
        case "Grid":
            return GridSamplingAlgorithm()
        case "Bayesian":
            return BayesianSamplingAlgorithm()
    return RandomSamplingAlgorithm(seed=body["seed"])


def _early_termination(body: Mapping[str, Any] | None) -> Any:
    if body is None:
        return None
    from azure.ai.ml.sweep import BanditPolicy, MedianStoppingPolicy, TruncationSelectionPolicy

    when = {"delay_evaluation": body["delayEvaluation"], "evaluation_interval": body["evaluationInterval"]}
    match body["policyType"]:
        case "Bandit":
            return BanditPolicy(slack_amount=body["slackAmount"], slack_factor=body["slackFactor"], **when)
        case "MedianStopping":
            return MedianStoppingPolicy(**when)
    return TruncationSelectionPolicy(truncation_percentage=body["truncationPercentage"], **when)
