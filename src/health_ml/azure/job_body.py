"""From a plan to the body of the request that creates a job in AzureML. Pure: nothing is read, sent or looked up.

The names of the fields are those of the service's interface (Microsoft.MachineLearningServices, jobs). What only the
service can say stands there as it is known before: the code by the hash of its snapshot, a cluster by its name, a
dataset as the user named it. :func:`health_ml.azure.jobs.submit_body` puts their ids in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from health_ml.azure.command import check_values, encoded_names, job_command
from health_ml.azure.compute import SERVERLESS
from health_ml.azure.environments import environment_of
from health_ml.azure.sweep_body import (
    SEARCH_PROPERTY,
    early_termination_body,
    iso_duration,
    limits_body,
    objective_body,
    sampling_body,
    search_property,
    search_space_body,
)
from health_ml.errors import PlanError
from health_ml.planning.datasets import LATEST, input_name, output_name, parse_dataset
from health_ml.planning.plan import JobPlan, PlannedDataset
from health_ml.planning.search_space import Sampling, SearchSpace
from health_ml.settings import ENV_PRIMARY_METRIC, ENV_TRIAL

DEFAULT_VARIABLES = {
    # A job that is cancelled or preempted gets this long to save a checkpoint, and its files as long to be collected.
    "AZUREML_RUN_KILL_SIGNAL_TIMEOUT_SEC": "900",
    "AZUREML_OUTPUT_UPLOAD_TIMEOUT_SEC": "3600",
    # MKL and the OpenMP of other packages otherwise refuse to share a process.
    "MKL_SERVICE_FORCE_INTEL": "1",
    # Mounts go past a cache that fills the disk of the node.
    "RSLEX_DIRECT_VOLUME_MOUNT": "true",
}
"""Environment variables of every job; those of the container win."""
MOUNT_POINT_PROPERTY = "AZURE_ML_{direction}_PathOnCompute_{name}"
"""Property of a job that says where an input or output is on the node: the body of an input has no field for it."""
LONGEST_NAME = 255
LONGEST_TAG = 1000
LONGEST_TAG_NAME = 100
MOST_TAGS = 50
"""What the service's page on limits says about tags and properties: characters of a value and of a name, and number."""
JOB_TIERS = {"spot": "Spot", "basic": "Basic", "standard": "Standard", "premium": "Premium"}
PRIORITIES = {"low": 1, "medium": 2, "high": 3}
SERVICES = {"jupyter": "JupyterLab", "vscode": "VSCode", "tensorboard": "TensorBoard", "ssh": "SSH"}
_EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")
_MEMORY = re.compile(r"[1-9]\d*[bBkKmMgG]")


def job_body(plan: JobPlan, cluster: str) -> dict[str, Any]:
    """Returns the ``properties`` of the job, or of the sweep job if the plan varies something.

    :param cluster: Name of the compute cluster.
    :raises PlanError: If AzureML cannot do what the plan asks for.
    """
    _check(plan)
    return _sweep_body(plan, cluster, plan.search_space) if plan.search_space else _command_body(plan, cluster)


def _command_body(plan: JobPlan, cluster: str) -> dict[str, Any]:
    body = {"jobType": "Command", **_common(plan, cluster), **_program(plan, job_command(plan.argv))}
    if plan.limits.max_run_seconds is not None:
        body["limits"] = {"jobLimitsType": "Command", "timeout": iso_duration(plan.limits.max_run_seconds)}
    if plan.compute.services:
        body["services"] = {name: _service(plan, name) for name in plan.compute.services}
    return body


def _sweep_body(plan: JobPlan, cluster: str, space: SearchSpace) -> dict[str, Any]:
    check_values(space)
    limits = limits_body(space, plan.limits.max_run_seconds)
    names = encoded_names(space.parameter_names)
    program = _program(plan, job_command(plan.argv, names))
    program["environmentVariables"][ENV_TRIAL] = "1"
    common = _common(plan, cluster)
    common["properties"][SEARCH_PROPERTY] = search_property(space, names, longest=LONGEST_TAG)
    if space.primary_metric is not None:
        program["environmentVariables"][ENV_PRIMARY_METRIC] = space.primary_metric
    body = {
        "jobType": "Sweep",
        **common,
        "searchSpace": search_space_body(space, names),
        "samplingAlgorithm": sampling_body(space),
        "objective": objective_body(space),
        "limits": limits,
        "trial": program,
        # The service reads them here or in the trial, depending on its version.
        "resources": program["resources"],
    }
    if space.early_termination is not None:
        body["earlyTermination"] = early_termination_body(space.early_termination, space.sampling)
    return body


def _common(plan: JobPlan, cluster: str) -> dict[str, Any]:
    """Returns what a job and a sweep job have in common."""
    body: dict[str, Any] = {
        "displayName": _shortened(plan.display_name or plan.model_name, LONGEST_NAME),
        "experimentName": plan.experiment,
        "inputs": {input_name(index): _input(data) for index, data in enumerate(plan.datasets) if data.name},
        "outputs": {output_name(index): _output(data) for index, data in enumerate(plan.output_datasets)},
        "tags": _all_shortened({**dict(plan.tags), **_provenance_tags(plan)}),
        "properties": _all_shortened({**_mount_points(plan), **_git_properties(plan)}),
    }
    if cluster != SERVERLESS:
        body["computeId"] = cluster
    if plan.compute.has_user_identity:
        body["identity"] = {"identityType": "UserIdentity"}
    queue: dict[str, Any] = {}
    if plan.compute.job_tier:
        queue["jobTier"] = JOB_TIERS[plan.compute.job_tier]
    if plan.compute.priority:
        queue["priority"] = PRIORITIES[plan.compute.priority]
    return {**body, "queueSettings": queue} if queue else body


def _all_shortened(texts: Mapping[str, str]) -> dict[str, str]:
    """Returns tags or properties as long as they may be; the record of the run has the whole of each."""
    return {name: _shortened(text, LONGEST_TAG) for name, text in texts.items()}


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _program(plan: JobPlan, command: str) -> dict[str, Any]:
    """Returns what runs, on how many nodes."""
    resources: dict[str, Any] = {"instanceCount": plan.num_nodes}
    if plan.limits.shared_memory:
        resources["shmSize"] = plan.limits.shared_memory
    if plan.compute.instance_type:
        resources["instanceType"] = plan.compute.instance_type
    program = {
        "command": command,
        "codeId": f"snapshot:{plan.snapshot_hash}",
        "environmentId": environment_of(plan.software).reference,
        "environmentVariables": {**DEFAULT_VARIABLES, **plan.environment},
        "resources": resources,
    }
    if plan.num_nodes > 1:
        # One process per node: Lightning starts the others itself.
        program["distribution"] = {"distributionType": "Mpi", "processCountPerInstance": 1}
    return program


def _input(data: PlannedDataset) -> dict[str, Any]:
    mode = "ReadOnlyMount" if data.is_mounted else "Download"
    return {"jobInputType": "uri_folder", "mode": mode, "uri": _reference(data)}


def _output(data: PlannedDataset) -> dict[str, Any]:
    mode = "ReadWriteMount" if data.is_mounted else "Upload"
    reference = parse_dataset(data.name)
    body: dict[str, Any] = {"jobOutputType": "uri_folder", "mode": mode}
    if reference.uri:
        return {**body, "uri": reference.uri}
    return {**body, "assetName": reference.name, **({"assetVersion": reference.version} if reference.version else {})}


def _reference(data: PlannedDataset) -> str:
    reference = parse_dataset(data.name)
    if reference.uri or reference.version:
        return reference.uri or f"azureml:{reference.text}"
    return f"azureml:{reference.name}@{reference.label or LATEST}"


def _mount_points(plan: JobPlan) -> dict[str, str]:
    return {
        MOUNT_POINT_PROPERTY.format(direction="INPUT", name=input_name(index)): data.mountpoint
        for index, data in enumerate(plan.datasets)
        if data.mountpoint
    }


def _service(plan: JobPlan, name: str) -> dict[str, Any]:
    properties = {
        "ssh": {"sshPublicKeys": plan.compute.ssh_public_key},
        "tensorboard": {"logDir": "logs"},
    }
    body: dict[str, Any] = {"jobServiceType": SERVICES[name]}
    return {**body, "properties": properties[name]} if name in properties else body


def _provenance_tags(plan: JobPlan) -> dict[str, str]:
    tags = {
        "snapshot_hash": plan.snapshot_hash,
        "plan_hash": plan.plan_hash,
        "himl_runner": plan.software.runner_version,
    }
    if plan.provenance is not None:
        tags |= {
            "git_commit": plan.provenance.commit or "",
            "git_branch": plan.provenance.branch or "",
            "git_remote": plan.provenance.remote or "",
            "git_dirty": str(plan.provenance.is_dirty).lower(),
        }
    return {name: value for name, value in tags.items() if value}


def _git_properties(plan: JobPlan) -> dict[str, str]:
    """Returns the properties by which the studio shows the state of the code.

    The SDK would set them itself, with the address of the repository as git has it, password and all; it does not if
    one of them is there.
    """
    if plan.provenance is None:
        return {}
    found = {
        "mlflow.source.git.repoURL": plan.provenance.remote,
        "mlflow.source.git.branch": plan.provenance.branch,
        "mlflow.source.git.commit": plan.provenance.commit,
        "azureml.git.dirty": str(plan.provenance.is_dirty),
    }
    return {name: value for name, value in found.items() if value}


def _check(plan: JobPlan) -> None:
    """Raises one error for everything that AzureML cannot do, so that nothing is uploaded for it.

    :raises PlanError: With all of it.
    """
    problems = [problem for check in (_name_problems, _flag_problems) for problem in check(plan)]
    if problems:
        raise PlanError("AzureML cannot run this job: " + " ".join(problems))


def _name_problems(plan: JobPlan) -> list[str]:
    problems = []
    if not _EXPERIMENT.fullmatch(plan.experiment):
        problems.append(
            f"The name of the experiment, {plan.experiment!r}, may have letters, digits, '-' and '_' only, up to 255 "
            "of them, a letter or digit first: set --experiment."
        )
    if plan.limits.shared_memory and not _MEMORY.fullmatch(plan.limits.shared_memory):
        problems.append(f"--docker_shm_size={plan.limits.shared_memory} is no size such as 400g or 512m.")
    tags = dict(plan.tags)
    problems += [
        f"The tag {name!r} has a name of more than {LONGEST_TAG_NAME} characters."
        for name in tags
        if len(name) > LONGEST_TAG_NAME
    ]
    if len(tags) + len(_provenance_tags(plan)) > MOST_TAGS:
        problems.append(f"The container sets {len(tags)} tags, and with ours there may be {MOST_TAGS}.")
    reserved = [name for name in plan.environment if name.startswith("AZUREML_") and name not in DEFAULT_VARIABLES]
    if reserved:
        problems.append(
            f"The container sets {', '.join(sorted(reserved))}: AzureML keeps names with AZUREML_ to itself."
        )
    return problems


def _flag_problems(plan: JobPlan) -> list[str]:
    problems = []
    space = plan.search_space
    if plan.compute.priority and space is None:
        problems.append("--priority has no effect on a single job, which AzureML's interface gives none: leave it out.")
    if space is not None and space.sampling is Sampling.BAYESIAN and space.sampling_seed:
        problems.append("--sampling_seed has no effect on a Bayesian search, which has no seed: leave it out.")
    if plan.compute.services and space is not None:
        problems.append("--interactive_services has no effect on a search: its trials have none. Leave it out.")
    labelled = [data.name for data in plan.output_datasets if parse_dataset(data.name).label]
    if labelled:
        problems.append(
            f"--output_datasets={','.join(labelled)}: a job cannot write to a label; give no more than a name."
        )
    versions = [data.name for data in plan.output_datasets if parse_dataset(data.name).version]
    if versions and space is not None:
        problems.append(
            f"--output_datasets={','.join(versions)}: every trial would write this version; give no more than a name, "
            "so that each gets a new one."
        )
    local = [data.local_folder for data in plan.datasets if not data.name and data.local_folder]
    if local:
        problems.append(f"--local_datasets={','.join(local)}: these folders are on this machine; add --azure_datasets.")
    mounted_without_data = [data.mountpoint for data in plan.datasets if data.mountpoint and not data.name]
    if mounted_without_data:
        problems.append(
            f"--dataset_mountpoints={','.join(mounted_without_data)} has no effect without --azure_datasets."
        )
    return problems
